"""Training on a real cluster: one node, two nodes, and through the loss of each pod."""

import re
import shutil
from pathlib import Path

import pytest
import yaml

from tests.e2e_k8s.conftest import CLAIM, Site, nodes_of, shell

QUICKSTART = Path(__file__).parents[2] / "examples/quickstart"
SAVE_EVERY = 5
STEPS = 80


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
        "set -e\n"
        "LAUNCH_NODES=1 NODE_RANK=0 python3 -m trainer.node.entrypoint --config train-base.yaml\n"
        "exec python3 -m trainer.node.entrypoint --config train-job.yaml\n"
    )
    run_id = site.submit(site.job(run=shell(script), code="."))
    site.wait(run_id, "succeeded")
    lines = nodes_of(site.launch.ok("logs", run_id))
    assert [sum("step 4/4" in line for line in lines[node]) for node in (0, 1)] == [2, 2]


def shared(site: Site, *more: str) -> list[str]:
    """Options for a job that reads and writes the volume, in a folder of this suite's run."""
    if not site.volume:
        pytest.skip("needs a folder that all nodes share: --e2e-volume-path PATH")
    quickstart(site)
    return settings(f"image={site.cluster.image}", "cluster=e2e", f"mounts=[{{path: /shared, claim: {CLAIM}}}]", *more)


def folder(site: Site) -> str:
    """Where this suite's run writes in the volume."""
    return f"/shared/{site.cluster.namespace}"


def train_base(site: Site) -> str:
    """Make the base model, if no test has done it yet; returns its path."""
    output = f"{folder(site)}/base"
    run_id = site.submit("base.yaml", *shared(site, f"train.settings.output_dir={output}",
                                              "train.optimizer.max_steps=4", "train.optimizer.batch_size=2"))
    site.wait(run_id, "succeeded")
    return f"{output}/model"


def test_two_nodes_train_on_a_shared_volume_and_the_adapter_is_in_it(site: Site):
    shared(site)
    base = train_base(site)
    lora = site.submit("job.yaml", *shared(
        site, "resources.nodes=2", f"train.model.path={base}", f"train.settings.output_dir={folder(site)}/lora",
        "train.optimizer.max_steps=8", "train.optimizer.batch_size=2"))
    site.wait(lora, "succeeded")
    mounts = [{"path": "/shared", "claim": CLAIM}]
    listed = site.submit(site.job(run=["ls", f"{folder(site)}/lora/adapter"], mounts=mounts, resources={"nodes": 1}))
    site.wait(listed, "succeeded")
    assert "adapter_model.safetensors" in nodes_of(site.launch.ok("logs", listed))[0]


def test_training_goes_on_after_the_loss_of_any_pod(site: Site):
    """First the pod of node 1 is deleted in mid-run, then that of node 0, and no step is trained for nothing but those
    after the last save."""
    shared(site)
    base = train_base(site)
    run_id = site.submit("job.yaml", *shared(
        site, "resources.nodes=2", "restarts=3", f"train.model.path={base}",
        f"train.settings.output_dir={folder(site)}/survivor", f"train.optimizer.max_steps={STEPS}",
        "train.optimizer.batch_size=2", f"train.runtime.save_every={SAVE_EVERY}", "train.runtime.log_every=1",
        "train.runtime.sample_prompts=[]"))
    resumed, due = [], [(1, SAVE_EVERY + 3), (0, 5 * SAVE_EVERY + 3)]
    for line in site.followed(run_id, "--node", "0"):
        if found := re.search(r"resuming from \S+ \(step (\d+)\)", line):
            resumed.append(int(found[1]))
        step = re.search(rf"\bstep (\d+)/{STEPS}\b", line)
        if step and due and int(step[1]) >= due[0][1]:
            node, _ = due.pop(0)
            pod = site.cluster.pods(run_id)[node]
            site.cluster.kind("Pod").delete(name=pod.metadata.name, namespace=site.cluster.namespace)
    assert due == []
    status = site.wait(run_id, "succeeded")
    assert [node["exit_code"] for node in status["nodes"]] == [0, 0]
    assert len(resumed) == 2, f"resumed at {resumed}"
    assert resumed[0] >= SAVE_EVERY and resumed[1] >= 5 * SAVE_EVERY
    text = site.launch.ok("logs", "--node", "0", run_id)
    steps = [int(step) for step in re.findall(rf"\bstep (\d+)/{STEPS}\b", text)]
    assert sorted(set(steps)) == list(range(1, STEPS + 1))
    again = {step for step in steps if steps.count(step) > 1}
    assert all(any(start < step for start in resumed) for step in again)
