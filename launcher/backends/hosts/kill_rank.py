"""How a drill ends one rank of a job on a host."""

from launcher.backends import processes
from launcher.errors import BackendError
from launcher.runs.record import Run

# Kills the trainer process of a run that has these variables, and ends with 3 when there is none. By its environment,
# so that one in a container is found from outside it; other users' processes cannot be read, and are not ours.
_KILL = """
cd /proc
files=$(echo [0-9]*/environ)  # not ls: processes end meanwhile
for variable; do files=$(grep -lzxF -e "$variable" /dev/null $files 2>/dev/null); done
code=3
for file in $files; do
  pid="${file%/environ}"
  if grep -qzxF trainer.cli "$pid/cmdline" 2>/dev/null && kill -KILL "$pid"; then code=0; fi
done
exit "$code"
"""


def kill_command(run: Run, rank: int) -> list[str]:
    """A job of one process has no ranks: nothing tells its process a RANK."""
    ranks = [f"RANK={rank}"] if run.nodes * run.processes_per_node > 1 else []
    return ["bash", "-c", _KILL, "kill-rank", f"LAUNCH_RUN_ID={run.run_id}", *ranks]


def require_killed(done: processes.Completed, rank: int, run: Run) -> None:
    """Raise BackendError unless the command has killed something."""
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise nothing_there(run, f"rank {rank} could not be killed: {said[-1] if said else 'it has no process now'}")


def nothing_there(run: Run, what: str) -> BackendError:
    """The error of a fault that finds nothing to hit."""
    return BackendError(f"{run.run_id}: {what}", f"see its state: launch status {run.run_id}")
