"""What a drill does to a run, through its back end's own means. One class a back end; all have the same methods.

`preempt` is what a scheduler does when it wants a machine back: the job is told, has its grace period, and comes back.
`kill_rank` is a crash: one trainer process is gone without a word. `hasten` shortens a wait before the next start.
"""

import time
from collections.abc import Callable, Mapping
from typing import Protocol, cast

from launcher.backends import processes as shell
from launcher.backends.base import Backend
from launcher.backends.kubernetes.client import Kube
from launcher.backends.kubernetes.pod import RUN_LABEL
from launcher.backends.kubernetes.status import by_node, pod_ended
from launcher.backends.local.backend import LocalBackend
from launcher.errors import BackendError
from launcher.runs.status import State
from launcher.runs.store import Run

# A node refuses a job whose credential is as old as the end of its last start ("Job credential revoked").
SETTLE_S = 5

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


class Harm(Protocol):
    """Every method may raise BackendError."""

    def preempt(self, run: Run, node: int) -> None:
        """Take a node away as a scheduler does, with time for a checkpoint."""

    def kill_rank(self, run: Run, rank: int) -> None:
        """End one trainer process at once."""

    def hasten(self, run: Run, ended: Callable[[], bool]) -> None:
        """Skip what the back end waits before it starts the job again; returns when it has, or when `ended()`."""


class LocalHarm:
    """TERM to a node's processes, KILL to one process."""

    def __init__(self, target: Backend, environ: Mapping[str, str]) -> None:
        self.target = cast(LocalBackend, target)

    def preempt(self, run: Run, node: int) -> None:
        """Its whole process group is told, as Slurm tells every process of a step."""
        self.target.preempt_node(run, node)

    def kill_rank(self, run: Run, rank: int) -> None:
        """The trainer process of that rank."""
        _must(shell.try_command(_kill_command(run, rank)), rank, run)

    def hasten(self, run: Run, ended: Callable[[], bool]) -> None:
        """The next start follows at once."""


class SlurmHarm:
    """Slurm's own signals, and a step of the job beside the trainer's."""

    def __init__(self, target: Backend, environ: Mapping[str, str]) -> None:
        self.target = target
        self.environ = environ

    def preempt(self, run: Run, node: int) -> None:
        """What Slurm sends to the batch script before a time limit; a job loses all its nodes at once."""
        shell.run_command(["scancel", "--batch", "--signal=USR1", _job_id(run)], env=self.environ)

    def kill_rank(self, run: Run, rank: int) -> None:
        """KILL, by a step on the node of that rank."""
        node = rank // run.processes_per_node
        host = next((found.host for found in self.target.status(run).nodes if found.node == node), None)
        if host is None:
            raise _nothing_there(run, f"node {node} has no host now")
        step = ["srun", f"--jobid={_job_id(run)}", "--overlap", f"--nodelist={host}", "--nodes=1", "--ntasks=1",
                "--mem=0", "--quiet"]  # fmt: skip
        _must(shell.try_command([*step, *_kill_command(run, rank)], env=self.environ), rank, run)

    def hasten(self, run: Run, ended: Callable[[], bool]) -> None:
        """A requeued job is held for two minutes; its owner may set another start time."""
        soon = ["scontrol", "update", f"jobid={_job_id(run)}", f"starttime=now+{SETTLE_S}"]
        while not ended():
            state = self.target.status(run).state
            if state.ended or (state is State.PENDING and not shell.try_command(soon, env=self.environ).returncode):
                return
            time.sleep(0.5)


class KubernetesHarm:
    """The Eviction API, and the deletion of a pod without grace."""

    def __init__(self, target: Backend, environ: Mapping[str, str]) -> None:
        self.environ = environ

    def preempt(self, run: Run, node: int) -> None:
        """What a drain does; a PodDisruptionBudget may refuse it."""
        kube, namespace, pod = self._pod(run, node)
        kube.evict(namespace, pod)

    def kill_rank(self, run: Run, rank: int) -> None:
        """Its pod, the smallest thing that Kubernetes ends: the other ranks of that node go with it."""
        kube, namespace, pod = self._pod(run, rank // run.processes_per_node)
        kube.delete("Pod", namespace, pod, propagation="Background", at_once=True)

    def hasten(self, run: Run, ended: Callable[[], bool]) -> None:
        """The Job controller's ten seconds cannot be shortened."""

    def _pod(self, run: Run, node: int) -> tuple[Kube, str, str]:
        kube, namespace = Kube(self.environ, run.context), run.namespace or "default"
        pods = by_node(kube.list("Pod", namespace, labels=f"{RUN_LABEL}={run.run_id}")).get(node, [])
        alive = [pod["metadata"]["name"] for pod in pods if not pod_ended(pod)]
        if not alive:
            raise _nothing_there(run, f"node {node} has no pod now")
        return kube, namespace, alive[-1]


HARMS: dict[str, Callable[[Backend, Mapping[str, str]], Harm]] = {
    "local": LocalHarm, "slurm": SlurmHarm, "kubernetes": KubernetesHarm,
}


def _kill_command(run: Run, rank: int) -> list[str]:
    """A job of one process has no ranks: nothing tells its process a RANK."""
    ranks = [f"RANK={rank}"] if run.nodes * run.processes_per_node > 1 else []
    return ["bash", "-c", _KILL, "kill-rank", f"LAUNCH_RUN_ID={run.run_id}", *ranks]


def _must(done: shell.Completed, rank: int, run: Run) -> None:
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise _nothing_there(run, f"rank {rank} could not be killed: {said[-1] if said else 'it has no process now'}")


def _nothing_there(run: Run, what: str) -> BackendError:
    return BackendError(f"{run.run_id}: {what}", f"see its state: launch status {run.run_id}")


def _job_id(run: Run) -> str:
    if run.job_id is None:
        raise BackendError(f"{run.run_id}: this machine does not know its number in Slurm", "submit it from here")
    return run.job_id
