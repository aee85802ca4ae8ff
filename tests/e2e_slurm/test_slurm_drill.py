"""`launch drill` on a real Slurm, with a trainer that needs no model; bench/clusters/drills.py has the real trainer."""

import json

import pytest
import yaml

from tests.toy_trainer import write_toy

PATIENCE_S = 240


@pytest.mark.needs("slurm")
@pytest.mark.parametrize("kind", ["preempt", "kill-rank"])
def test_a_drill_passes(hpc, kind):
    profile = {"backend": "slurm", "partition": "main", "grace": "5s", "python": str(write_toy(hpc.cwd))}
    (hpc.cwd / "clusters.yaml").write_text(yaml.safe_dump({"place": profile}))
    train = {"model": {"path": "unread"}, "data": {"sources": [{"path": "unread"}]}}
    resources = {"nodes": 2, "cpus_per_node": 1, "memory_per_node": "300Mi"}
    (hpc.cwd / "job.yaml").write_text(
        yaml.safe_dump({"name": "toy", "cluster": "place", "resources": resources, "train": train}))
    done = hpc.run("drill", kind, "job.yaml", "--seed", "7", "--json", timeout_s=PATIENCE_S)
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads(done.stdout)
    assert report["ok"]
    assert [check["name"] for check in report["checks"] if not check["ok"]] == []
    assert kind == "kill-rank" or report["steps_lost"] == 0
    status = hpc.json("status")[0]
    assert (status["state"], [node["restarts"] for node in status["nodes"]]) == ("succeeded", [1, 1])
    assert list(hpc.cwd.glob("outputs/*")) == []
