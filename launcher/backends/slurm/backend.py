"""Slurm as a back end, through its own commands: sbatch, scontrol, sacct, scancel. Logs are files on the file system
that the nodes and this machine share.

The state of a job is what Slurm says; of one that Slurm has forgotten (MinJobAge, often five minutes, and no
accounting), what its script left in the run folder. squeue is not asked: with --json it lists every job of the cluster.
"""

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from launcher.backends import processes as shell
from launcher.backends.base import LeavesOrphans, Orphan, Sent, Submission
from launcher.backends.hosts.containers import orphan_containers, remove_container
from launcher.backends.hosts.log_files import LogFiles
from launcher.backends.hosts.run_folder import lay_out
from launcher.backends.slurm.faults import SlurmFaults
from launcher.backends.slurm.job import SlurmJob, job_of, printed_job, queued_job
from launcher.backends.slurm.status import Record, from_sacct, from_scontrol, slurm_status
from launcher.errors import BackendError
from launcher.job.profile import Profile
from launcher.job.rendered import Rendered
from launcher.logs.line import Batch, LogQuery
from launcher.runs.record import Run
from launcher.runs.status import JobStatus
from launcher.runs.store import RunStore

ASK_EVERY_S = 2.0
CANCEL_WAIT_S = 60.0

# What sbatch says -> the next command.
REFUSALS = (
    ("partition", "see the partitions: sinfo --summarize; then set `partition` in the cluster's profile"),
    ("account", "see your accounts: sacctmgr show associations user=$USER; then set `account` in the profile"),
    ("qos", "see yours: sacctmgr show associations user=$USER format=account,qos; then set `qos` in the profile"),
    ("feature", "see the nodes' features: sinfo --format='%n %f'; then set `constraint` in the cluster's profile"),
    ("node configuration", "see what a node has: sinfo --format='%P %D %c %m %G'; then lower `resources`"),
    ("time limit", "see the limits: sinfo --format='%P %l'; then lower resources.time_limit"),
    ("memory", "see what a node has: sinfo --format='%P %m'; then lower resources.memory_per_node"),
    ("configuration source", "run launch on a machine of the cluster, or set SLURM_CONF"),
    ("contact slurm controller", "is the cluster up? ask it: scontrol ping"),
    ("no such command", "run launch on a login node of the cluster"),
)

# What a user's shell may hold for jobs of another kind would override the script's own options.
_FOREIGN = re.compile(r"(SBATCH|SRUN|SALLOC|SLURM)_")
_KEPT = ("SLURM_CONF", "SLURM_JWT", "SLURM_CLUSTERS")


class SlurmBackend(SlurmFaults, LeavesOrphans):
    """Runs jobs on a Slurm cluster."""

    def __init__(self, store: RunStore, environ: dict[str, str]) -> None:
        self.store = store
        self.environ = environ

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
        folder = self.store.folder(run.run_id)
        try:
            record = self._record(run)
        except BackendError:
            if not (folder / "exit_code").exists():
                raise
            record = None
        return slurm_status(folder, record, run.exit_codes)

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
        job = self._job(run)
        if job is None:
            return
        self._must(job.command("scancel", job.number))
        deadline = time.monotonic() + CANCEL_WAIT_S
        while time.monotonic() < deadline and not self.status(run).state.ended:
            time.sleep(0.2)

    def orphans(self, profile: Profile | None, warn: Callable[[str], None]) -> list[Orphan]:
        """Containers of runs that have ended, when this machine is one of the nodes."""
        return orphan_containers(self, "slurm", self.store, self.environ, warn)

    def remove(self, orphan: Orphan) -> None:
        """Remove the container."""
        remove_container(orphan, self.environ)

    def _job(self, run: Run) -> SlurmJob | None:
        """The run's job. A submit that was killed has not noted it; then the queue is asked."""
        return job_of(run) or self._queued(run.run_id)

    def _queued(self, run_id: str) -> SlurmJob | None:
        """This run's job while it is in the queue, or in that of any cluster of $SLURM_CLUSTERS. With a header, which
        names the clusters."""
        listed = self._must(["squeue", f"--name={run_id}", "--format=%i %k"])
        return queued_job(listed, _comment(self.store.folder(run_id)))

    def _withdraw(self, run_id: str) -> None:
        """Cancel what a failed sbatch may have sent all the same. Raises BackendError when that cannot be known."""
        try:
            if job := self._queued(run_id):
                self._must(job.command("scancel", job.number))
        except BackendError as error:
            raise BackendError(f"{error.message}; the job may have been taken",
                               f"when Slurm answers again: scancel --name={run_id}") from error

    def _ended(self, run: Run) -> Callable[[], bool]:
        """Whether the run has ended, for a follower that asks often: the file says it at once, Slurm is asked rarely,
        and a controller that does not answer for a while changes nothing."""
        exit_code = self.store.folder(run.run_id) / "exit_code"
        asked = -ASK_EVERY_S

        def ended() -> bool:
            nonlocal asked
            if exit_code.exists():
                return True
            if time.monotonic() - asked < ASK_EVERY_S:
                return False
            asked = time.monotonic()
            try:
                return self.status(run).state.ended
            except BackendError:
                return False

        return ended

    def _record(self, run: Run) -> Record | None:
        """What scontrol or else sacct knows of the job; None when both have forgotten it."""
        job = self._job(run)
        if job is None:
            return None
        shown = self._ask(job.command("scontrol", "show", "job", job.number))
        if shown.returncode == 0 and "JobState=" in shown.stdout:
            return from_scontrol(shown.stdout)
        if "nvalid job id" not in shown.stderr:
            raise _refusal(shown)
        if not shell.has_command("sacct"):
            return None
        listed = self._ask(job.command("sacct", "-X", "-P", "-n", "-o", "state,exitcode", "-j", job.number))
        lines = listed.stdout.splitlines()
        return from_sacct(lines[-1]) if listed.returncode == 0 and lines else None

    def _cluster_name(self) -> str:
        config = self._must(["scontrol", "show", "config"])
        match = re.search(r"^ClusterName\s*=\s*(\S+)", config, re.MULTILINE)
        return match[1] if match else "cluster"

    def _sbatch(self, options: list[str], rendered: Rendered, env: dict[str, str], cwd: Path | None = None) -> str:
        return self._must(["sbatch", *options], stdin=rendered.text, env=env, cwd=cwd)

    def _must(self, argv: list[str], **more: Any) -> str:
        """What one of Slurm's commands prints. Raises BackendError with its words."""
        done = self._ask(argv, **more)
        if done.returncode:
            raise _refusal(done)
        return done.stdout

    def _ask(self, argv: list[str], **more: Any) -> shell.Completed:
        try:
            return shell.try_command(argv, **{"env": self.environ, **more})
        except BackendError as error:
            raise BackendError(error.message, _hint(error.message)) from error

    def _job_environ(self, secrets: "dict[str, str] | tuple[str, ...]") -> dict[str, str]:
        """What the job inherits: this environment without the secrets' values and without options for other jobs."""
        environ = {key: value for key, value in self.environ.items()
                   if key not in secrets and (key in _KEPT or not _FOREIGN.match(key))}
        environ["LAUNCH_HOME"] = str(self.store.root.parent)
        return environ


def _comment(folder: Path) -> str:
    """What marks the job in the queue as the run of this folder, and no other user's or home's."""
    return f"launch {folder}"


def _refusal(done: shell.Completed) -> BackendError:
    """Slurm's own words, and what to do about them."""
    words = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
    said = "; ".join(line.partition("error: ")[2] or line for line in words)
    return BackendError(f"{done.args[0]}: {said}", _hint(said))


def _hint(words: str) -> str | None:
    return next((hint for part, hint in REFUSALS if part in words.lower()), None)
