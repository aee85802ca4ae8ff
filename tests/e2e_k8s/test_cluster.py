"""launch on a real cluster: submit, follow, cancel, fail, be refused.

The pods' image comes from --e2e-image, and only from the nodes' own store when they have no registry.
"""

import hashlib
import random

import pytest
import yaml

from tests.e2e_k8s.conftest import PATIENCE_S, Site, nodes_of, shell, wait_until


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
        return f"image {image} cannot be pulled" in (status["reason"] or "")

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


def test_a_restricted_pod_runs_as_nobody_special(site: Site):
    """The namespace refuses any other; this one is admitted and can write where it must."""
    script = ("id -u; touch /tmp/a /workspace/b /dev/shm/c && echo writes; touch /d 2>/dev/null || echo read-only; "
              "ls /var/run/secrets/kubernetes.io 2>/dev/null || echo no token")
    run_id = site.submit(site.job(run=shell(script), resources={"nodes": 1}))
    site.wait(run_id, "succeeded")
    assert nodes_of(site.launch.ok("logs", run_id))[0] == ["1000", "writes", "read-only", "no token"]


def test_code_of_several_config_maps_arrives_whole(site: Site):
    content = random.Random(0).randbytes(2_500_000)
    (site.launch.cwd / "weights.bin").write_bytes(content)
    run_id = site.submit(site.job(run=["sha256sum", "weights.bin"], code="."))
    site.wait(run_id, "succeeded")
    line = f"{hashlib.sha256(content).hexdigest()}  weights.bin"
    assert nodes_of(site.launch.ok("logs", run_id)) == {0: [line], 1: [line]}
    (site.launch.cwd / "weights.bin").write_bytes(content * 4)
    assert "weights.bin" in site.launch.run("submit", "job.yaml").stderr


def test_code_is_the_pods_own_and_can_only_be_read(site: Site):
    (site.launch.cwd / "who.py").write_text("NAME = 'this run'\n")
    script = ("touch /opt/code/x 2>/dev/null || echo read-only; echo 'NAME = 0' >who.py && cd / && "
              "python3 -c 'import who; print(who.NAME, who.__file__)'")
    run_id = site.submit(site.job(run=shell(script), code=".", resources={"nodes": 1}))
    site.wait(run_id, "succeeded")
    assert nodes_of(site.launch.ok("logs", run_id))[0] == ["read-only", "this run /opt/code/who.py"]


def test_quota_is_told_before_anything_is_sent(site: Site):
    quotas = site.cluster.kind("ResourceQuota")
    quotas.create({"metadata": {"name": "none"}, "spec": {"hard": {"pods": "0"}}}, namespace=site.cluster.namespace)
    try:
        def refusal() -> str:
            done = site.launch.run("submit", site.job(name="over", run=shell("true")))
            return done.stderr if done.returncode == 3 else ""

        wait_until(lambda: "exceeded quota" in refusal(), "the quota to count")
    finally:
        quotas.delete(name="none", namespace=site.cluster.namespace)


def test_logs_stay_when_the_job_is_gone(site: Site):
    run_id = site.submit(site.job(run=shell("echo $NODE_RANK here")))
    site.wait(run_id, "succeeded")
    before = site.launch.ok("logs", run_id)
    site.cluster.kind("Job", "batch/v1").delete(
        name=run_id, namespace=site.cluster.namespace, body={"propagationPolicy": "Background"})
    wait_until(lambda: site.cluster.left_of(run_id) == [], "everything to go")
    assert nodes_of(before) == {0: ["0 here"], 1: ["1 here"]}
    assert site.launch.ok("logs", run_id) == before
    assert site.status(run_id)["state"] == "succeeded"


def test_prune_finds_what_an_orphaning_delete_left(site: Site):
    script = "trap 'exit 0' TERM; while true; do sleep 0.1; done"
    run_id = site.submit(site.job(run=shell(script), code="."))
    site.wait(run_id, "running")
    site.cluster.kind("Job", "batch/v1").delete(
        name=run_id, namespace=site.cluster.namespace, body={"propagationPolicy": "Orphan"})
    kinds = ["ConfigMap", "Pod", "Pod", "Service"]
    wait_until(lambda: sorted(item["kind"] for item in site.launch.json("prune")) == kinds, "the orphans",
               PATIENCE_S)
    site.launch.ok("prune", "--yes")
    wait_until(lambda: site.cluster.left_of(run_id) == [], "everything to go")


def test_a_job_set_runs_and_leaves_nothing(site: Site):
    if not site.cluster.has_job_set():
        pytest.skip("JobSet is not installed in the cluster")
    site.profile(kubernetes_kind="JobSet")
    script = "until getent hosts $MASTER_ADDR >/dev/null; do sleep 0.2; done; echo $MASTER_ADDR; sleep 5"
    run_id = site.submit(site.job(run=shell(script)))
    site.wait(run_id, "succeeded")
    name = f"{run_id}-n-0-0.{run_id}"
    assert nodes_of(site.launch.ok("logs", run_id)) == {0: [name], 1: [name]}
    idle = site.submit(site.job(run=shell("trap 'exit 0' TERM; while true; do sleep 0.1; done")))
    site.wait(idle, "running")
    site.launch.ok("cancel", idle)
    wait_until(lambda: site.cluster.left_of(idle) == [], "everything to go")
