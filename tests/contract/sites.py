"""Places that the contract suite launches jobs at. A Site knows how to write a job for its cluster, how to wait, and
what a finished run has left behind."""

import os
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from tests.cli_runner import Launch
from tests.fakes.kubernetes import FakeCluster
from tests.fakes.kubernetes.resources import RESOURCES

PATIENCE_S = 120
RANK = 'rank="${NODE_RANK:-${JOB_COMPLETION_INDEX:-0}}"'


@dataclass
class Site:
    """One back end under test."""

    backend: str
    launch: Launch
    leftovers: Callable[[dict[str, Any]], list[str]]
    profile: dict[str, Any] = field(default_factory=dict)

    def job(self, script: str, **fields: Any) -> str:
        """Write a two-node job that runs a bash script on each node; `$rank` is its number. Returns the file's name."""
        job = {"name": "contract", "resources": {"nodes": 2}, "run": ["bash", "-c", f"{RANK}\n{script}"], **fields}
        if self.profile:
            job["cluster"] = "under-test"
            profiles = {"under-test": {"backend": self.backend, **self.profile}}
            (self.launch.cwd / "clusters.yaml").write_text(yaml.safe_dump(profiles))
        (self.launch.cwd / "job.yaml").write_text(yaml.safe_dump(job, allow_unicode=True))
        return "job.yaml"

    def gate(self) -> tuple[str, Path]:
        """A bash line that waits, and the file that lets it go on once it is made."""
        path = self.launch.cwd / "go"
        return f"until [ -e {path} ]; do sleep 0.05; done", path

    def submit(self, script: str, **fields: Any) -> str:
        """Submit a job; returns the run id."""
        self.launch.ok("submit", self.job(script, **fields))
        return str(self.launch.json("list")[-1]["run"])

    def status(self, run_id: str) -> dict[str, Any]:
        """What `launch status --json` says."""
        return dict(self.launch.json("status", run_id)[0])

    def wait(self, run_id: str, *states: str) -> dict[str, Any]:
        """Poll until the run is in one of `states`; fails when it ends in another, or never comes there."""
        ended = {"succeeded", "failed", "cancelled"}
        deadline = time.monotonic() + PATIENCE_S
        while (status := self.status(run_id))["state"] not in states:
            assert status["state"] not in ended, f"wanted {states}, got {status}\n{self.launch.ok('logs', run_id)}"
            assert time.monotonic() < deadline, f"still {status}"
            time.sleep(0.2)
        return status

    def lines(self, run_id: str, *options: str) -> dict[int, list[str]]:
        """The log of each node."""
        found: dict[int, list[str]] = {}
        for line in self.launch.json("logs", run_id, *options):
            found.setdefault(line["node"], []).append(line["text"])
        return found


def processes_of(run: dict[str, Any]) -> list[str]:
    """Command lines of processes of this machine that carry the run's id in their environment."""
    marker = f"LAUNCH_RUN_ID={run['run']}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if marker in (folder / "environ").read_bytes().split(b"\0"):
                found.append((folder / "cmdline").read_text().replace("\0", " "))
        except OSError:  # it has ended, or is another user's
            continue
    return found


def local_at(launch: Launch) -> Site:
    """This machine."""
    return Site("local", launch, processes_of)


@contextmanager
def kubernetes_at(launch: Launch, folder: Path) -> Iterator[tuple[Site, FakeCluster]]:
    """A fake API server over HTTP, whose kubelets run real processes."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as work, FakeCluster(folder) as cluster:
        launch.cwd = Path(work)
        cluster.shared_paths.append(launch.cwd)
        cluster.run_as_user = False  # who could not enter the folders of the user who runs the tests
        launch.env["KUBECONFIG"] = str(cluster.kubeconfig)
        yield Site("kubernetes", launch, kubernetes_objects_of(cluster), {"grace": "5s"}), cluster


def kubernetes_objects_of(cluster: FakeCluster) -> Callable[[dict[str, Any]], list[str]]:
    """Objects that carry the run's label."""

    def leftovers(run: dict[str, Any]) -> list[str]:
        query = {"labelSelector": f"launch/run-id={run['run']}"}
        kinds = ("jobs", "services", "configmaps", "secrets", "pods")
        found = [cluster.api.list_objects(RESOURCES[kind], None, query)["items"] for kind in kinds]
        return [f"{item['metadata']['name']}" for items in found for item in items]

    return leftovers


def slurm_jobs_of(environ: dict[str, str]) -> Callable[[dict[str, Any]], list[str]]:
    """What squeue still lists of a run."""

    def leftovers(run: dict[str, Any]) -> list[str]:
        job_id = run["handle"].rsplit("/", 1)[1]
        listed = subprocess.run(["squeue", "--noheader", "--format=%i %T"], capture_output=True, text=True, check=True,
                                env={**os.environ, **environ})
        return [line for line in listed.stdout.splitlines() if line.split()[0] == job_id]

    return leftovers
