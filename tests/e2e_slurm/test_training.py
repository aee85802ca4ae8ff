"""The quickstart on a real Slurm: two nodes, DeepSpeed ZeRO-2, a 4-bit base, in the image, not root, read-only root."""

import re
import shutil
from pathlib import Path

import pytest

QUICKSTART = Path(__file__).parents[2] / "examples/quickstart"
STEPS = 6
PATIENCE_S = 300


def small(cluster, image, nodes):
    """Options that make a quickstart job short, and fit it to the test cluster."""
    fields = {"cluster": cluster, "image": image, "resources.nodes": nodes, "resources.memory_per_node": "3500Mi",
              "train.optimizer.max_steps": STEPS, "train.runtime.log_every": 1, "env.OMP_NUM_THREADS": 1}
    return [word for key, value in fields.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture
def quickstart(hpc, podman):
    """The example's folder, with an output folder that the image's user may write to."""
    hpc.env.update(podman)
    shutil.copytree(QUICKSTART, hpc.cwd, dirs_exist_ok=True, ignore=shutil.ignore_patterns("outputs"))
    for folder in (hpc.cwd / "outputs", hpc.cwd):
        folder.mkdir(exist_ok=True)
        folder.chmod(0o777)
    return hpc


@pytest.mark.needs("slurm", "podman")
def test_two_nodes_train_one_adapter(quickstart, image):
    base = quickstart.run("submit", "--follow", "base.yaml", *small("podman", image, 1), timeout_s=PATIENCE_S)
    assert base.returncode == 0, base.stderr
    quickstart.ok("submit", "job.yaml", *small("podman", image, 2))
    follower = quickstart.start("logs", "-f")
    seen, running = [], None
    for line in follower.stdout:
        seen.append(line)
        if running is None and " step 1/" in line:
            running = quickstart.json("status")[0]
    assert follower.wait(PATIENCE_S) == 0
    text = "".join(seen)
    assert running is not None, text
    assert running["state"] == "running", text
    for node in (0, 1):
        steps = re.findall(rf"^\[node {node}\] step (\d+)/{STEPS} ", text, re.MULTILINE)
        assert steps == [str(step) for step in range(1, STEPS + 1)], text
    assert re.search(r"x 2 processes", text), text
    status = quickstart.json("status")[0]
    assert (status["state"], status["exit_code"]) == ("succeeded", 0), text
    [adapter] = quickstart.cwd.glob("outputs/quickstart-*/adapter")
    assert {"adapter_config.json", "adapter_model.safetensors"} <= {path.name for path in adapter.iterdir()}
    assert adapter.stat().st_uid == 1000
    states = list(adapter.parent.glob(f"checkpoint-{STEPS}/zero/rank-*.safetensors"))
    assert len(states) == 2, states  # ZeRO split the optimizer over both ranks
