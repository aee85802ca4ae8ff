"""launch on a real cluster: submit, follow, cancel, fail, be refused, and train.

The pods' image comes from --e2e-image, and only from the nodes' own store when they have no registry.
"""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.e2e_k8s.conftest import CLAIM, PATIENCE_S, Site, wait_until

QUICKSTART = Path(__file__).parents[2] / "examples/quickstart"


def shell(script: str) -> list[str]:
    """A command that runs a script."""
    return ["bash", "-c", script]


def nodes_of(text: str) -> dict[int, list[str]]:
    """The lines of each node from what `launch logs` printed."""
    found: dict[int, list[str]] = {}
    for line in text.splitlines():
        match = re.fullmatch(r"\[node (\d+)\] (.*)", line)
        assert match, line
        found.setdefault(int(match[1]), []).append(match[2])
    return found


def test_two_nodes_are_followed_and_their_logs_stay(site: Site):
    script = "for i in $(seq 1 40); do echo $NODE_RANK line $i; sleep 0.1; done; echo $NODE_RANK $MASTER_ADDR"
    run_id = site.submit(site.job(run=shell(script)))
    follower = site.launch.start("logs", "-f", run_id)
    followed, errors = follower.communicate(timeout=PATIENCE_S)
    assert follower.returncode == 0, errors
    want = {node: [*(f"{node} line {i}" for i in range(1, 41)), f"{node} {run_id}-0.{run_id}"] for node in (0, 1)}
    assert nodes_of(followed) == want
    status = site.wait(run_id, "succeeded")
    assert [(node["node"], node["state"], node["exit_code"]) for node in status["nodes"]] == [
        (0, "succeeded", 0), (1, "succeeded", 0)]
    assert all(node["host"] for node in status["nodes"])
    assert nodes_of(site.launch.ok("logs", run_id)) == want
    assert nodes_of(site.launch.ok("logs", "--tail", "2", "--node", "1", run_id)) == {1: want[1][-2:]}


def test_pods_find_each_other_by_name(site: Site):
    script = (
        "import os, socket, time\n"
        "host = os.environ['MASTER_ADDR']\n"
        "for _ in range(300):\n"
        "    try:\n"
        "        print('found', bool(socket.gethostbyname(host)))\n"
        "        break\n"
        "    except OSError:\n"
        "        time.sleep(0.2)\n"
        "else:\n"
        "    raise SystemExit(3)\n"
        "time.sleep(5)\n"  # pod 0 keeps its name until the other has looked it up
    )
    run_id = site.submit(site.job(run=["python3", "-c", script]))
    site.wait(run_id, "succeeded")
    assert nodes_of(site.launch.ok("logs", run_id)) == {0: ["found True"], 1: ["found True"]}


def test_environment_arrives_as_written_and_secrets_stay_secret(site: Site):
    ugly = {"DOLLARS": "$HOME $(HOME) $$ $$(X) ${A}", "QUOTES": "it's \"so\"", "LINES": "one\ntwo\n", "WORD": "no",
            "CJK": "上海"}
    script = f"import os; [print(name, os.environb[name.encode()].hex()) for name in {[*ugly, 'E2E_TOKEN']}]"
    site.launch.env["E2E_TOKEN"] = "s3cr3t-value"
    job = site.job(run=["python3", "-c", script], env=ugly, secrets=["E2E_TOKEN"], resources={"nodes": 1})
    run_id = site.submit(job)
    site.wait(run_id, "succeeded")
    lines = nodes_of(site.launch.ok("logs", run_id))[0]
    values = {line.split()[0]: bytes.fromhex(line.split()[1]).decode() for line in lines}
    assert values == {**ugly, "E2E_TOKEN": "s3cr3t-value"}
    assert "s3cr3t-value" not in site.launch.ok("render", job)
    assert "s3cr3t-value" not in (site.launch.run_dir(run_id) / "render.yaml").read_text()


def test_what_was_rendered_is_what_the_cluster_has(site: Site):
    run_id = site.submit(site.job(run=shell("true"), restarts=2))
    rendered = next(yaml.safe_load_all(site.launch.ok("render", "job.yaml", "--run-id", run_id)))
    job = site.cluster.kind("Job", "batch/v1").get(name=run_id, namespace=site.cluster.namespace).to_dict()
    assert contains(job["spec"], rendered["spec"]) == []
    site.wait(run_id, "succeeded")


def contains(have: object, want: object, path: str = "spec") -> list[str]:
    """Where `have` lacks or differs from `want`; what the cluster added does not matter."""
    if isinstance(want, dict) and isinstance(have, dict):
        return [text for key, value in want.items() for text in contains(have.get(key), value, f"{path}.{key}")]
    if isinstance(want, list) and isinstance(have, list) and len(have) >= len(want):
        return [text for index, value in enumerate(want) for text in contains(have[index], value, f"{path}[{index}]")]
    return [] if have == want else [f"{path}: have {have!r}, want {want!r}"]


def test_cancel_leaves_nothing_but_the_logs(site: Site):
    site.launch.env["E2E_TOKEN"] = "s3cr3t-value"
    script = "trap 'echo saving; sleep 1; echo saved; exit 75' TERM; echo up; while true; do sleep 0.1; done"
    run_id = site.submit(site.job(run=shell(script), secrets=["E2E_TOKEN"], code="."))
    wait_until(lambda: site.launch.ok("logs", run_id).count("] up\n") == 2, "both nodes", PATIENCE_S)
    assert len(site.cluster.left_of(run_id)) == 6  # Job, 2 Pods, Service, ConfigMap, Secret
    site.launch.ok("cancel", run_id)
    wait_until(lambda: site.cluster.left_of(run_id) == [], "everything to go")
    assert site.status(run_id)["state"] == "cancelled"
    assert site.launch.run("cancel", run_id).returncode == 0
    lines = nodes_of(site.launch.ok("logs", run_id))
    assert [lines[node][:2] for node in (0, 1)] == [["up", "saving"]] * 2


def test_failing_job_is_reported_with_its_exit_code(site: Site):
    idle = "trap 'exit 0' TERM; while true; do sleep 0.1; done"
    job = site.job(run=shell(f"echo $NODE_RANK says; if [ $NODE_RANK = 1 ]; then exit 7; fi; {idle}"))
    done = site.launch.run("submit", "--follow", job, timeout_s=PATIENCE_S)
    assert done.returncode == 5, done.stderr
    assert "[node 1] 1 says" in done.stderr
    run_id = done.stdout.strip().rsplit("/", 1)[1]
    status = site.status(run_id)
    assert (status["state"], status["exit_code"]) == ("failed", 7)
    assert "node 1: exit code 7" in status["reason"]


def test_wrong_configuration_ends_at_once_and_a_failure_is_tried_again(site: Site):
    wrong = site.submit(site.job(run=shell("exit 78"), restarts=3, resources={"nodes": 1}))
    status = site.wait(wrong, "failed")
    assert (status["exit_code"], status["nodes"][0]["restarts"]) == (78, 0)
    flaky = site.submit(site.job(run=shell("echo try; exit 1"), restarts=1, resources={"nodes": 1}))
    status = site.wait(flaky, "failed")
    assert status["exit_code"] == 1
    assert nodes_of(site.launch.ok("logs", flaky)) == {0: ["try", "try"]}


def test_image_that_is_not_there_is_named(site: Site):
    image = "launch-e2e.invalid/missing-image:0"
    run_id = site.submit(site.job(run=shell("true"), image=image, resources={"nodes": 1}))

    def named() -> bool:
        status = site.wait(run_id, "pending")
        return f"image {image} cannot be had" in (status["reason"] or "")

    wait_until(named, "the reason", PATIENCE_S)
    site.launch.ok("cancel", run_id)


def test_restricted_namespace_refuses_host_paths_before_anything_is_sent(site: Site):
    job = site.job(name="forbidden", run=shell("true"), mounts=[{"path": "/host", "host_path": "/"}])
    done = site.launch.run("submit", job)
    assert done.returncode == 3
    assert "Pod Security" in done.stderr
    assert site.launch.json("list") == []
    assert site.cluster.left_of("forbidden-") == []


def test_namespace_that_is_missing_is_named_with_the_command_that_makes_it(site: Site):
    profile = {"e2e": {"backend": "kubernetes", "namespace": "launch-e2e-nowhere"}}
    (site.launch.cwd / "clusters.yaml").write_text(yaml.safe_dump(profile))
    done = site.launch.run("submit", site.job(run=shell("true")))
    assert done.returncode == 3
    assert "namespace 'launch-e2e-nowhere' does not exist" in done.stderr
    assert "create namespace launch-e2e-nowhere" in done.stderr


def settings(*words: str) -> list[str]:
    """`--set` for each."""
    return [option for word in words for option in ("--set", word)]


def quickstart(site: Site) -> None:
    """The quickstart's files as the job's folder."""
    for path in QUICKSTART.iterdir():
        if path.is_file():
            shutil.copy(path, site.launch.cwd / path.name)


def test_one_node_trains_from_its_config_map(site: Site):
    quickstart(site)
    run_id = site.submit("base.yaml", *settings("cluster=e2e", f"image={site.cluster.image}",
                                                "train.optimizer.max_steps=4", "train.optimizer.deepspeed=null",
                                                "train.runtime.log_every=1", "train.settings.output_dir=/tmp/base"))
    site.wait(run_id, "succeeded")
    assert "step 4/4" in site.launch.ok("logs", run_id)


def test_two_nodes_train_a_lora_together(site: Site):
    """Without a shared volume each node makes the same base model for itself, then both train one adapter."""
    quickstart(site)
    for name, output, path in (("base", "/tmp/base", None), ("job", "/tmp/lora", "/tmp/base/model")):
        train = yaml.safe_load((QUICKSTART / f"{name}.yaml").read_text())["train"]
        train["settings"]["output_dir"] = output
        train["optimizer"] |= {"max_steps": 4, "deepspeed": {"zero_stage": 2} if path else None}
        train["runtime"] |= {"log_every": 1, "sample_prompts": train["runtime"]["sample_prompts"][:1]}
        train["model"] |= {"path": path} if path else {}
        (site.launch.cwd / f"train-{name}.yaml").write_text(yaml.safe_dump(train))
    script = (
        "set -e; export LAUNCH_CODE=\n"
        "LAUNCH_NODES=1 NODE_RANK=0 python3 -m trainer.entrypoint --config train-base.yaml\n"
        "exec python3 -m trainer.entrypoint --config train-job.yaml\n"
    )
    run_id = site.submit(site.job(run=shell(script), code="."))
    site.wait(run_id, "succeeded")
    lines = nodes_of(site.launch.ok("logs", run_id))
    assert [sum("step 4/4" in line for line in lines[node]) for node in (0, 1)] == [2, 2]


def test_quickstart_trains_on_a_shared_volume(site: Site):
    if not site.volume:
        pytest.skip("needs a folder that all nodes share: --e2e-volume-path PATH")
    quickstart(site)
    common = [f"image={site.cluster.image}", "cluster=e2e", f"mounts=[{{path: /shared, claim: {CLAIM}}}]"]
    base = site.submit("base.yaml", *settings(*common, "train.settings.output_dir=/shared/base"))
    site.wait(base, "succeeded")
    lora = site.submit("job.yaml", *settings(
        *common, "resources.nodes=2", "train.model.path=/shared/base/model", "train.settings.output_dir=/shared/lora",
        "train.optimizer.max_steps=20"))
    site.wait(lora, "succeeded")
    mounts = [{"path": "/shared", "claim": CLAIM}]
    listed = site.submit(site.job(run=["ls", "/shared/lora/adapter"], mounts=mounts, resources={"nodes": 1}))
    site.wait(listed, "succeeded")
    assert "adapter_model.safetensors" in nodes_of(site.launch.ok("logs", listed))[0]
