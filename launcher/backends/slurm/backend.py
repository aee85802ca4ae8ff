"""Slurm as a back end, through its own commands: sbatch, scontrol, sacct, scancel. Logs are files on the file system
that the nodes and this machine share.

The state of a job is what Slurm says (observer.py); of one that Slurm has forgotten, what its script left in the run
folder.
"""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from launcher.backends.base import LeavesOrphans, Orphan, Sent, Submission
from launcher.backends.hosts.containers import orphan_containers, remove_container
from launcher.backends.hosts.log_files import LogFiles
from launcher.backends.hosts.run_folder import lay_out
from launcher.backends.slurm.commands import SlurmCommands
from launcher.backends.slurm.faults import SlurmFaults
from launcher.backends.slurm.job import printed_job
from launcher.backends.slurm.observer import Observer
from launcher.backends.slurm.status import slurm_status
from launcher.errors import BackendError
from launcher.job.profile import Profile
from launcher.job.rendered import Rendered
from launcher.logs.line import Batch, LogQuery
from launcher.runs.record import Run
from launcher.runs.status import JobStatus, State
from launcher.runs.store import RunStore

ASK_EVERY_S = 2.0
CANCEL_WAIT_S = 60.0

# What a user's shell may hold for jobs of another kind would override the script's own options.
_FOREIGN = re.compile(r"(SBATCH|SRUN|SALLOC|SLURM)_")
_KEPT = ("SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS")


class SlurmBackend(SlurmFaults, LeavesOrphans):
    """Runs jobs on a Slurm cluster."""

    def __init__(self, store: RunStore, environ: dict[str, str]) -> None:
        self.store = store
        self.environ = environ
        self.commands = SlurmCommands(environ)
        self.observer = Observer(self.commands, lambda run_id: _comment(store.folder(run_id)))

    def check(self, rendered: Rendered) -> None:
        """Slurm itself says whether it would take the job."""
        self._sbatch(["--test-only"], rendered, self._job_environ(rendered.plan.secrets))

    def notes(self) -> list[str]:
        """Options for sbatch in the shell would override what the job says."""
        names = sorted(name for name in self.environ if name.startswith("SBATCH_"))
        return [f"{', '.join(names)}: not used; set partition, account and the like in the cluster's profile, other "
                "options under sbatch"] if names else []

    def submit(self, rendered: Rendered, submission: Submission) -> Sent:
        """Lay out what the script needs in the run folder, and send it from the job file's folder."""
        lay_out(self.store, submission)
        cluster = self._cluster_name()
        environ = self._job_environ(submission.secrets)
        options = ["--parsable", f"--comment={_comment(submission.run_dir)}"]
        try:
            printed = self._sbatch(options, rendered, environ, submission.job_dir)
        except BackendError:
            self._withdraw(rendered.plan.run_id)  # a time-out of sbatch does not say whether the job was taken
            raise
        job = printed_job(printed)
        return Sent(f"slurm://{job.cluster or cluster}/{job.number}", job.place)

    def status(self, run: Run) -> JobStatus:
        """What Slurm says and what the run has left; without an answer from Slurm, what the run has left."""
        try:
            record = self.observer.record(run)
        except BackendError:
            if left := self._left(run):
                return left
            raise
        return slurm_status(self.store.folder(run.run_id), record, run.exit_codes)

    def statuses(self, runs: Sequence[Run], warn: Callable[[str], None]) -> dict[str, JobStatus]:
        """One query for all that wait or run; how others ended is asked about one by one, and then never again."""
        try:
            going = self.observer.going(runs)
        except BackendError as error:
            warn(error.message)
            unknown = JobStatus(State.UNKNOWN, error.message)
            return {run.run_id: self._left(run) or unknown for run in runs}
        return {run.run_id: JobStatus(going[run.run_id]) if run.run_id in going and not self._left(run)
                else self._status_or_unknown(run, warn) for run in runs}

    def logs(self, run: Run, query: LogQuery) -> Iterator[Batch]:
        """From the files that srun writes."""
        files = LogFiles(self.store.folder(run.run_id) / "logs", query.nodes(run.nodes, run.processes_per_node),
                         began=run.created, ended=self._ended(run))
        return files.read(query, picks=query.picks(run.processes_per_node))

    def cancel(self, run: Run) -> None:
        """scancel: TERM, KillWait seconds for a last checkpoint, then KILL. Waits until Slurm has ended the job."""
        folder = self.store.folder(run.run_id)
        if self.status(run).state.ended:
            return
        (folder / "cancelled").touch()
        job = self.observer.job(run)
        if job is None:
            return
        self.commands.printed(job.command("scancel", job.number))
        deadline = time.monotonic() + CANCEL_WAIT_S
        while time.monotonic() < deadline and not self.status(run).state.ended:
            time.sleep(0.2)

    def orphans(self, profile: Profile | None, warn: Callable[[str], None]) -> list[Orphan]:
        """Containers of runs that have ended, when this machine is one of the nodes."""
        return orphan_containers(self, "slurm", self.store, self.environ, warn)

    def remove(self, orphan: Orphan) -> None:
        """Remove the container."""
        remove_container(orphan, self.environ)

    def _withdraw(self, run_id: str) -> None:
        """Cancel what a failed sbatch may have sent all the same. Raises BackendError when that cannot be known."""
        try:
            if job := self.observer.queued(run_id):
                self.commands.printed(job.command("scancel", job.number))
        except BackendError as error:
            raise BackendError(f"{error.message}; the job may have been taken",
                               f"when Slurm answers again: scancel --name={run_id}") from error

    def _ended(self, run: Run) -> Callable[[], bool]:
        """Whether the run has ended, for a follower that asks often: the file says it at once, Slurm is asked rarely,
        and a controller that does not answer for a while changes nothing."""
        folder = self.store.folder(run.run_id)

        def ended() -> bool:
            if (folder / "exit_code").exists():
                return True
            try:
                record = self.observer.record(run, ASK_EVERY_S)
            except BackendError:
                return False
            return slurm_status(folder, record, run.exit_codes).state.ended

        return ended

    def _left(self, run: Run) -> JobStatus | None:
        """How the run ended, if its own files say so."""
        folder = self.store.folder(run.run_id)
        return slurm_status(folder, None, run.exit_codes) if (folder / "exit_code").exists() else None

    def _cluster_name(self) -> str:
        config = self.commands.printed(["scontrol", "show", "config"])
        match = re.search(r"^ClusterName\s*=\s*(\S+)", config, re.MULTILINE)
        return match[1] if match else "cluster"

    def _sbatch(self, options: list[str], rendered: Rendered, env: dict[str, str], cwd: Path | None = None) -> str:
        return self.commands.printed(["sbatch", *options], stdin=rendered.text, env=env, cwd=cwd)

    def _job_environ(self, secrets: "dict[str, str] | tuple[str, ...]") -> dict[str, str]:
        """What the job inherits: this environment without the secrets' values and without options for other jobs."""
        environ = {key: value for key, value in self.environ.items()
                   if key not in secrets and (key in _KEPT or not _FOREIGN.match(key))}
        environ["LAUNCH_HOME"] = str(self.store.root.parent)
        return environ


def _comment(folder: Path) -> str:
    """What marks the job in the queue as the run of this folder, and no other user's or home's."""
    return f"launch {folder}"
