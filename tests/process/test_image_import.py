"""An image becomes a file once for all nodes and jobs, whatever happens to an import. apptainer and enroot are
stand-ins (tests/fakes/images): neither can be installed on a plain Debian. The scripts around them are real."""

import os
import time
from pathlib import Path

import pytest
import yaml

from tests.contract.sites import processes_of
from tests.fakes.slurm.cluster import FakeSlurm

BIN = Path(__file__).parent.parent / "fakes/images/bin"
PATIENCE_S = 60
IMAGE = "registry.example.com/team/trainer:0.1"
CALLS = {"apptainer": f"apptainer pull {{file}}.part docker://{IMAGE}",
         "pyxis": "enroot import --output {file}.part docker://registry.example.com#team/trainer:0.1"}


class Bench:
    """Jobs in images on one back end."""

    def __init__(self, launch, tmp_path, backend, runtime):
        self.launch, self.runtime, self.here = launch, runtime, tmp_path / "stand-in"
        self.here.mkdir()
        path = os.environ["PATH"]
        if backend == "slurm":
            (tmp_path / "cluster").mkdir()
            launch.env.update(FakeSlurm(tmp_path / "cluster").environ())
            path = launch.env["PATH"]
        launch.env.update(PATH=f"{BIN}{os.pathsep}{path}", STAND_IN_DIR=str(self.here))
        profiles = {"c": {"backend": backend, "container_runtime": runtime, "grace": "5s"}}
        (launch.cwd / "clusters.yaml").write_text(yaml.safe_dump(profiles))

    def submit(self, **fields):
        """A job of two nodes; returns its run id."""
        job = {"name": "job", "cluster": "c", "image": IMAGE, "resources": {"nodes": 2}, "run": ["echo", "up"]} | fields
        (self.launch.cwd / "job.yaml").write_text(yaml.safe_dump(job))
        self.launch.ok("submit", "job.yaml")
        return self.launch.json("list")[-1]["run"]

    def allow(self, what="go"):
        """Imports come to their end, or to a full disk."""
        (self.here / what).touch()

    def imports(self):
        """The imports that were begun."""
        calls = (self.here / "calls").read_text().splitlines() if (self.here / "calls").exists() else []
        return [call for call in calls if not call.startswith("apptainer exec")]

    def files(self):
        """What the shared folder of images holds, without locks."""
        return sorted(path for path in (self.launch.home / "images").glob("*") if path.suffix != ".lock")

    def wait(self, run_id, state):
        """Until the run has ended, as it must."""
        until(lambda: self.launch.json("status", run_id)[0]["state"] in ("succeeded", "failed", "cancelled"))
        assert self.launch.json("status", run_id)[0]["state"] == state, self.launch.ok("logs", run_id)


def until(condition):
    """Wait for something that is bound to happen."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(params=["slurm-apptainer", "slurm-pyxis", "local-apptainer"])
def bench(request, launch, tmp_path):
    return Bench(launch, tmp_path, *request.param.split("-"))


def test_jobs_at_once_and_later_import_once(bench):
    runs = [bench.submit(), bench.submit()]
    until(bench.imports)
    assert [path.suffix for path in bench.files()] == [".part"]
    bench.allow()
    for run_id in runs:
        bench.wait(run_id, "succeeded")
        assert {"[node 0] up", "[node 1] up"} <= set(bench.launch.ok("logs", run_id).splitlines())
    file, = bench.files()
    assert file.read_text() == "whole\n"
    bench.wait(bench.submit(), "succeeded")
    assert bench.imports() == [CALLS[bench.runtime].format(file=file)]


def test_a_cancelled_import_leaves_nothing_and_the_next_job_redoes_it(bench):
    run_id = bench.submit()
    until(bench.imports)
    bench.launch.ok("cancel", run_id)
    bench.wait(run_id, "cancelled")
    until(lambda: processes_of({"run": run_id}) == [])
    assert not [path for path in bench.files() if path.suffix != ".part"]
    bench.allow()
    bench.wait(bench.submit(), "succeeded")
    assert [path.read_text() for path in bench.files()] == ["whole\n"]
    assert len(bench.imports()) == 2


@pytest.mark.parametrize("bench", ["slurm-pyxis", "local-apptainer"], indirect=True)
def test_a_full_disk_fails_the_job_with_its_words(bench):
    bench.allow("full")
    bench.allow()
    run_id = bench.submit()
    bench.wait(run_id, "failed")
    log = bench.launch.ok("logs", run_id)
    assert "[node 0] write: No space left on device" in log
    assert "launch: no image, exit code 1; " in log
    assert "[node 1]" not in log
    assert bench.files() == []


@pytest.mark.parametrize("bench", ["slurm-pyxis", "local-apptainer"], indirect=True)
def test_an_image_file_of_the_user_is_not_imported(bench):
    suffix = {"apptainer": "sif", "pyxis": "sqsh"}[bench.runtime]
    bench.wait(bench.submit(image=f"/images/own.{suffix}"), "succeeded")
    assert (bench.imports(), bench.files()) == ([], [])
