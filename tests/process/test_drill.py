"""`launch drill` on this machine and on the fake Kubernetes: the real command and back ends, a trainer without a model
(tests/toy_trainer.py) that keeps its promises or breaks one."""

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from launcher.backends.local.backend import LocalBackend
from launcher.errors import BackendError
from launcher.runs.store import RunStore
from tests.cli_runner import Launch
from tests.contract.sites import Site, kubernetes_at, local_at, processes_of
from tests.records import a_run
from tests.toy_trainer import write_toy

PATIENCE_S = 180
SEED = "7"
# The fault comes after step 11, long before the save at 20, so that a killed job has steps to train again.
BETWEEN_SAVES = ("--seed", "31", "--set", "train.optimizer.max_steps=40", "--set", "train.runtime.save_every=10")


@pytest.fixture
def local(launch: Launch) -> Site:
    """This machine."""
    return local_at(launch)


@pytest.fixture
def kubernetes(launch: Launch, tmp_path: Path) -> Iterator[Site]:
    """A fake cluster whose pods see the working folder."""
    with kubernetes_at(launch, tmp_path / "cluster") as (site, _):
        yield site


@pytest.fixture(params=["local", "kubernetes"])
def site(request: pytest.FixtureRequest) -> Site:
    """Each in turn."""
    found: Site = request.getfixturevalue(request.param)
    return found


# The toy's ranks do not wait for each other, so a killed one may be a step behind what another has saved.
NODES = {"preempt": {"nodes": 2}, "kill-rank": {"nodes": 1}}


def write_job(site: Site, **fields: object) -> Path:
    """A two-node job whose outputs lie where every node sees them; returns its output folder."""
    work = site.launch.cwd
    profile = {"backend": site.backend, "grace": "5s", "python": str(write_toy(work))}
    (work / "clusters.yaml").write_text(yaml.safe_dump({"place": profile}))
    train = {"settings": {"output_dir": str(work / "out")}, "model": {"path": "unread"},
             "data": {"sources": [{"path": "unread"}]}}
    job = {"name": "toy", "cluster": "place", "resources": {"nodes": 2}, "train": train, **fields}
    (work / "job.yaml").write_text(yaml.safe_dump({key: value for key, value in job.items() if value is not None}))
    (work / "out").mkdir()
    (work / "out/checkpoint-99").mkdir()
    return work / "out"


@pytest.mark.parametrize("kind", ["preempt", "kill-rank"])
def test_a_job_that_keeps_its_promises_passes(site, kind):
    output = write_job(site, resources=NODES[kind])
    done = site.launch.run("drill", kind, "job.yaml", "--seed", SEED, "--json", timeout_s=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    assert report["ok"] and all(check["ok"] for check in report["checks"])
    assert report["seed"] == int(SEED)
    assert report["recovered_s"] > 0
    assert kind == "kill-rank" or report["steps_lost"] == 0
    assert f"(--seed {SEED})" in done.stderr
    assert (output / "checkpoint-99").is_dir()
    assert site.launch.json("status")[0]["state"] == "succeeded"


@pytest.mark.parametrize(("fault", "kind", "wrong"), [
    ("skip", "preempt", "steps: step "),
    ("reshuffle", "kill-rank", "same rows again: rank 0: step "),
    ("repeat", "preempt", "rows once: step 1: row 4 for the second time in this epoch"),
    ("deaf", "preempt", "restarts spent: the job did not survive on 0"),
])
def test_a_broken_promise_ends_with_5_and_says_which(local, fault, kind, wrong):
    write_job(local, env={"TOY_FAULT": fault}, resources=NODES[kind])
    done = local.launch.run("drill", kind, "job.yaml", *BETWEEN_SAVES, timeout_s=PATIENCE_S)
    assert done.returncode == 5, done.stdout + done.stderr
    assert f"error: {wrong}" in done.stderr
    assert next(line for line in done.stdout.splitlines() if line.startswith(wrong.partition(":")[0])).endswith(" no")


def test_ctrl_c_ends_the_job(local):
    write_job(local)
    drill = local.launch.start("drill", "preempt", "job.yaml", "--set", "train.optimizer.max_steps=1000")
    assert drill.stderr is not None
    while "(--seed " not in drill.stderr.readline():
        assert drill.poll() is None
    local.wait(local.launch.json("list")[0]["run"], "running")
    drill.send_signal(signal.SIGINT)
    assert drill.wait(PATIENCE_S) == 130
    assert local.launch.json("status")[0]["state"] == "cancelled"
    assert processes_of(local.launch.json("list")[0]) == []


@pytest.mark.parametrize(("options", "words"), [
    (["--set", "train.optimizer.max_steps=7"], "max_steps: must be at least 9 with save_every 5"),
    (["--rank", "2"], "--rank: must be 0 to 1 in this job, not 2"),
    (["--set", "train.optimizer.max_steps=null"], "max_steps: must be a number for a drill"),
])
def test_what_cannot_be_drilled_is_said_before_anything_is_sent(local, options, words):
    write_job(local)
    done = local.launch.run("drill", "kill-rank", "job.yaml", *options)
    assert done.returncode == 2
    assert words in done.stderr
    assert local.launch.json("list") == []


def test_only_training_jobs_can_be_drilled(local):
    write_job(local, train=None, run=["true"])
    done = local.launch.run("drill", "preempt", "job.yaml")
    assert done.returncode == 2
    assert "so it takes a job with `train`, not with `run`" in done.stderr


def test_a_job_that_ends_before_the_harm(local):
    write_job(local)
    (local.launch.cwd / "toy-python").write_text("#!/bin/sh\nexit 78\n")
    done = local.launch.run("drill", "preempt", "job.yaml", "--seed", SEED)
    assert done.returncode == 5
    assert "failed after step 0, before the fault at step" in done.stderr


def test_nothing_to_harm_is_an_error(tmp_path):
    store = RunStore(tmp_path)
    run = a_run("gone", nodes=2)
    faults = LocalBackend(store, {})
    with pytest.raises(BackendError, match="rank 1 could not be killed: it has no process now"):
        faults.kill_rank(run, 1)
    with pytest.raises(BackendError, match="node 1 does not run"):
        faults.preempt(run, 1)
