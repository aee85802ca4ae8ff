"""Faults of drills on Slurm: its own signals, and a step of the job beside the one that is to be hit."""

import time
from collections.abc import Callable

from launcher.backends import processes
from launcher.backends.base import Backend, InjectsFaults
from launcher.backends.hosts.kill_rank import kill_command, nothing_there, require_killed
from launcher.backends.slurm.job import SlurmJob, job_of
from launcher.errors import BackendError
from launcher.runs.record import Run
from launcher.runs.status import State

# A node refuses a job whose credential is as old as the end of its last start ("Job credential revoked").
SETTLE_S = 5


class SlurmFaults(InjectsFaults, Backend):
    """Through Slurm's commands."""

    environ: dict[str, str]

    def preempt(self, run: Run, node: int) -> None:
        """What Slurm sends to the batch script before a time limit; a job loses all its nodes at once."""
        job = _job(run)
        processes.run_command(job.command("scancel", "--batch", "--signal=USR1", job.number), env=self.environ)

    def kill_rank(self, run: Run, rank: int) -> None:
        """KILL, by a step on the node of that rank."""
        node = rank // run.processes_per_node
        host = next((found.host for found in self.status(run).nodes if found.node == node), None)
        if host is None:
            raise nothing_there(run, f"node {node} has no host now")
        job = _job(run)
        step = job.command("srun", f"--jobid={job.number}", "--overlap", f"--nodelist={host}", "--nodes=1",
                           "--ntasks=1", "--mem=0", "--quiet")
        require_killed(processes.try_command([*step, *kill_command(run, rank)], env=self.environ), rank, run)

    def skip_wait(self, run: Run, ended: Callable[[], bool]) -> None:
        """A requeued job is held for two minutes; its owner may set another start time."""
        job = _job(run)
        soon = job.command("scontrol", "update", f"jobid={job.number}", f"starttime=now+{SETTLE_S}")
        while not ended():
            state = self.status(run).state
            if state.ended or (state is State.PENDING and not processes.try_command(soon, env=self.environ).returncode):
                return
            time.sleep(0.5)


def _job(run: Run) -> SlurmJob:
    job = job_of(run)
    if job is None:
        raise BackendError(f"{run.run_id}: this machine does not know its number in Slurm", "submit it from here")
    return job
