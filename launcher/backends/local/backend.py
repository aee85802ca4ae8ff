"""This machine as a back end: a detached bash script, log files, and a lock that lives as long as the run."""

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from launcher.backends import processes as shell
from launcher.backends.base import LeavesOrphans, Orphan, Sent, Submission
from launcher.backends.hosts.attempts import ended_at, latest_attempt, node_rows, read_exit_code
from launcher.backends.hosts.containers import orphan_containers, remove_container
from launcher.backends.hosts.detached import is_alive, start_script
from launcher.backends.hosts.log_files import LogFiles
from launcher.backends.hosts.profile import HostProfile
from launcher.backends.hosts.run_folder import lay_out
from launcher.backends.local.faults import LocalFaults
from launcher.errors import BackendError
from launcher.job.profile import Profile
from launcher.job.rendered import Rendered
from launcher.logs.line import Batch, LogQuery
from launcher.runs.record import Run
from launcher.runs.status import JobStatus, State, exit_words
from launcher.runs.store import RunStore

KILLED = "its processes are gone without an exit code: killed, or the machine was restarted"


class LocalBackend(LocalFaults, LeavesOrphans):
    """Runs jobs here."""

    def __init__(self, store: RunStore, environ: dict[str, str]) -> None:
        self.store = store
        self.environ = environ

    def check(self, rendered: Rendered) -> None:
        """The runtime must be here; a port or a GPU is found out by the job itself."""
        profile = rendered.plan.profile
        assert isinstance(profile, HostProfile)  # noqa: S101
        runtime = profile.container_runtime
        if runtime != "none" and not shell.has_command(runtime):
            raise BackendError(f"{runtime}: no such command on this machine",
                               f"install {runtime}, or run without --container")

    def submit(self, rendered: Rendered, submission: Submission) -> Sent:
        """Start the script in a session of its own; it goes on when this process ends."""
        lay_out(self.store, submission)
        pid = start_script(submission.run_dir, submission.job_dir, self._job_environ(submission))
        return Sent(f"local://{rendered.plan.run_id}", {"job_id": str(pid)})

    def status(self, run: Run) -> JobStatus:
        """From the exit code that the script leaves, and the lock that its processes hold."""
        folder = self.store.folder(run.run_id)
        alive = is_alive(folder)  # before the exit code: the script leaves that, and then ends
        code = read_exit_code(folder)
        if (folder / "cancelled").exists() and (code is not None or not alive):
            return JobStatus(State.CANCELLED, "cancelled by the user", code, ended_at=ended_at(folder))
        if code is None and not alive:
            return JobStatus(State.FAILED, KILLED)
        state = State.RUNNING if code is None else State.SUCCEEDED if code == 0 else State.FAILED
        nodes = node_rows(folder, latest_attempt(folder), state, ["localhost"] * run.nodes, run.exit_codes)
        reason = exit_words(code, run.exit_codes) if code else None
        return JobStatus(state, reason, code, nodes, ended_at(folder))

    def logs(self, run: Run, query: LogQuery) -> Iterator[Batch]:
        """From the files that the script writes."""
        files = LogFiles(self.store.folder(run.run_id) / "logs", query.nodes(run.nodes, run.processes_per_node),
                         began=run.created, ended=lambda: self.status(run).state.ended)
        return files.read(query, picks=query.picks(run.processes_per_node))

    def cancel(self, run: Run) -> None:
        """TERM, time for a last checkpoint, then KILL."""
        folder = self.store.folder(run.run_id)
        session = int(run.place["job_id"]) if "job_id" in run.place else _written_pid(folder)
        if not is_alive(folder) or session is None:
            return
        (folder / "cancelled").touch()
        if not shell.signal_process(session, signal.SIGTERM):  # the script passes it on to each node, if it lives
            shell.signal_session(session, signal.SIGTERM)
        deadline = time.monotonic() + run.grace_s + 5
        while not (folder / "exit_code").exists() and is_alive(folder) and time.monotonic() < deadline:
            time.sleep(0.1)
        if is_alive(folder):  # what the job left in the background, or what did not stop in time
            shell.signal_session(session, signal.SIGKILL)

    def orphans(self, profile: Profile | None, warn: Callable[[str], None]) -> list[Orphan]:
        """Containers of runs that have ended."""
        return orphan_containers(self, "local", self.store, self.environ, warn)

    def remove(self, orphan: Orphan) -> None:
        """Remove the container."""
        remove_container(orphan, self.environ)

    def preempt(self, run: Run, node: int) -> None:
        """Tell one node to stop, as a scheduler does: every process of it, and nothing else of the run."""
        folder = self.store.folder(run.run_id)
        attempt = folder / f"attempts/{latest_attempt(folder)}"
        try:
            group = int((attempt / f"{node}.pid").read_text(encoding="utf-8"))
            (attempt / "stop_requested").touch()
        except (OSError, ValueError):
            group = None
        if group is None or not is_alive(folder) or not shell.signal_group(group, signal.SIGTERM):
            raise BackendError(f"{run.run_id}: node {node} does not run", f"see its state: launch status {run.run_id}")

    def _job_environ(self, submission: Submission) -> dict[str, str]:
        """This environment, with the python that runs launch first on PATH, and without the secrets' values."""
        environ = {key: value for key, value in self.environ.items() if key not in submission.secrets}
        environ["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environ.get('PATH', os.defpath)}"
        environ["LAUNCH_HOME"] = str(self.store.root.parent)
        return environ


def _written_pid(folder: Path) -> int | None:
    """What the script calls itself: all there is when launch was killed before it could note it."""
    try:
        return int((folder / "pid").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
