"""Faults of drills on this machine: TERM to a node's processes, KILL to one process."""

from collections.abc import Callable

from launcher.backends import processes
from launcher.backends.base import Backend, InjectsFaults
from launcher.backends.hosts.kill_rank import kill_command, require_killed
from launcher.runs.record import Run


class LocalFaults(InjectsFaults, Backend):
    """What needs nothing of the back end's own."""

    def kill_rank(self, run: Run, rank: int) -> None:
        """The process of that rank."""
        require_killed(processes.try_command(kill_command(run, rank)), rank, run)

    def skip_wait(self, run: Run, ended: Callable[[], bool]) -> None:
        """The next start follows at once."""
