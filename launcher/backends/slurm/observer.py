"""What Slurm knows of runs: asked for once, for all who want to know it.

Of one run scontrol says all, until Slurm forgets it (MinJobAge, often five minutes); then sacct does, where there is
accounting. Of many runs squeue says in one answer which still wait or run, by their numbers; without them, and with
--json whatever they are, it would list every job of the cluster.
"""

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby

from launcher.backends import processes
from launcher.backends.slurm.commands import SlurmCommands, refusal
from launcher.backends.slurm.job import SlurmJob, job_of, queued_job
from launcher.backends.slurm.status import STATES, Record, from_sacct, from_scontrol
from launcher.runs.record import Run
from launcher.runs.status import State

UNKNOWN_JOB = "nvalid job id"


class Observer:
    """Looks at runs. All threads share it: while one asks, those that want the same wait for it. `mark` is what a run's
    job carries as its comment."""

    def __init__(self, commands: SlurmCommands, mark: Callable[[str], str]) -> None:
        self.commands = commands
        self._mark = mark
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[float, Record | None]] = {}

    def record(self, run: Run, max_age_s: float = 0.0) -> Record | None:
        """What Slurm knows, as it was at most `max_age_s` ago; None when it has forgotten the job."""
        with self._lock:
            at, found = self._seen.get(run.run_id, (float("-inf"), None))
            if at <= time.monotonic() - max_age_s:
                at, found = time.monotonic(), self._record(run)
                self._seen[run.run_id] = at, found
            return found

    def going(self, runs: Sequence[Run]) -> dict[str, State]:
        """The state of those that wait or run, by run id. Those that have ended are missing, and those whose number is
        not known."""
        jobs = {run.run_id: job for run in runs if (job := job_of(run))}
        by_cluster = groupby(sorted(jobs.values(), key=_cluster), _cluster)
        states = {job: state for cluster, some in by_cluster
                  for job, state in self._queue(cluster or None, [job.number for job in some])}
        return {run_id: states[job] for run_id, job in jobs.items() if job in states}

    def job(self, run: Run) -> SlurmJob | None:
        """The run's job. A submit that was killed has not noted it; then the queue is asked."""
        return job_of(run) or self.queued(run.run_id)

    def queued(self, run_id: str) -> SlurmJob | None:
        """This run's job while it is in the queue, or in that of any cluster of $SLURM_CLUSTERS. With a header, which
        names the clusters."""
        listed = self.commands.printed(["squeue", f"--name={run_id}", "--format=%i %k"])
        return queued_job(listed, self._mark(run_id))

    def _queue(self, cluster: str | None, numbers: list[str]) -> Iterator[tuple[SlurmJob, State]]:
        asked = SlurmJob(",".join(numbers), cluster)
        listed = self.commands.tried(asked.command("squeue", "--noheader", f"--jobs={asked.number}", "--format=%i|%T"))
        if listed.returncode and UNKNOWN_JOB not in listed.stderr:  # what it says when it has forgotten all of them
            raise refusal(listed)
        for line in listed.stdout.splitlines():
            number, _, name = line.strip().partition("|")
            state = STATES.get(name, State.UNKNOWN)
            if state in (State.PENDING, State.RUNNING):
                yield SlurmJob(number, cluster), state

    def _record(self, run: Run) -> Record | None:
        job = self.job(run)
        if job is None:
            return None
        shown = self.commands.tried(job.command("scontrol", "show", "job", job.number))
        if shown.returncode == 0 and "JobState=" in shown.stdout:
            return from_scontrol(shown.stdout)
        if UNKNOWN_JOB not in shown.stderr:
            raise refusal(shown)
        if not processes.has_command("sacct"):
            return None
        listed = self.commands.tried(job.command("sacct", "-X", "-P", "-n", "-o", "state,exitcode", "-j", job.number))
        lines = listed.stdout.splitlines()
        return from_sacct(lines[-1]) if listed.returncode == 0 and lines else None


def _cluster(job: SlurmJob) -> str:
    return job.cluster or ""
