"""What a drill does to a run, through its back end's own means. One class a back end; all have the same methods.

`preempt` is what a scheduler does when it wants a machine back: the job is told, has its grace period, and comes back.
`kill_rank` is a crash: one trainer process is gone without a word. `hasten` shortens a wait before the next start.
"""

import time
from collections.abc import Callable, Mapping
from typing import Protocol

from launcher.backends.base import Backend, State
from launcher.backends.k8s_logs import JOB_LABEL
from launcher.backends.k8s_status import by_node, pod_ended
from launcher.edge import shell
from launcher.edge.kube import Kube
from launcher.errors import BackendError
from launcher.runs import Run

RESTART_WAIT_S = 300

# Signals the processes of a run on one machine that match, and fails when there is none. By their environment, so that
# those in a container are found from outside it.
_SIGNAL = """
pattern="$1"; signal="$2"; shift 2
files=$(cd /proc && ls -d [0-9]*/environ)
for variable; do
  files=$(cd /proc && grep -lzxF -e "$variable" $files /dev/null 2>/dev/null) || exit 3
done
found=3
for file in $files; do
  pid="${file%/environ}"
  if grep -qzxF -e "$pattern" "/proc/$pid/cmdline" 2>/dev/null && kill "-$signal" "$pid"; then found=0; fi
done
exit "$found"
"""
_TRAINER, _ENTRYPOINT = "trainer.cli", "trainer.entrypoint"


class Harm(Protocol):
    """Every method may raise BackendError."""

    def preempt(self, run: Run, node: int) -> None:
        """Take a node away as a scheduler does, with time for a checkpoint."""

    def kill_rank(self, run: Run, rank: int) -> None:
        """End one trainer process at once."""

    def hasten(self, run: Run, ended: Callable[[], bool]) -> None:
        """Skip what the back end waits before it starts the job again; returns when it has, or when `ended()`."""


class LocalHarm:
    """TERM or KILL to processes of this machine."""

    def __init__(self, target: Backend, environ: Mapping[str, str]) -> None:
        pass

    def preempt(self, run: Run, node: int) -> None:
        """TERM to what supervises the node's processes."""
        _must(_signal(_ENTRYPOINT, "TERM", run, f"NODE_RANK={node}"), f"node {node}", run)

    def kill_rank(self, run: Run, rank: int) -> None:
        """KILL to the process of that rank."""
        _must(_signal(_TRAINER, "KILL", run, *_rank(run, rank)), f"rank {rank}", run)

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
            raise BackendError(f"{run.run_id}: node {node} has no host now", f"see its state: launch status {run.run_id}")
        step = ["srun", f"--jobid={_job_id(run)}", "--overlap", f"--nodelist={host}", "--nodes=1", "--ntasks=1",
                "--mem=0", "--quiet"]  # fmt: skip
        _must(shell.try_command([*step, *_signal_command(_TRAINER, "KILL", run, *_rank(run, rank))], env=self.environ),
              f"rank {rank}", run)

    def hasten(self, run: Run, ended: Callable[[], bool]) -> None:
        """A requeued job is held for two minutes; its owner may set another start time."""
        deadline = time.monotonic() + RESTART_WAIT_S
        asked = False
        while time.monotonic() < deadline and not ended():
            state = self.target.status(run).state
            if state.ended or (asked and state is State.RUNNING):
                return
            if state is State.PENDING:
                shell.try_command(["scontrol", "update", f"jobid={_job_id(run)}", "starttime=now"], env=self.environ)
                asked = True
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
        pods = by_node(kube.list("Pod", namespace, labels=f"{JOB_LABEL}={run.run_id}")).get(node, [])
        alive = [pod["metadata"]["name"] for pod in pods if not pod_ended(pod)]
        if not alive:
            raise BackendError(f"{run.run_id}: node {node} has no pod now", f"see its state: launch status {run.run_id}")
        return kube, namespace, alive[-1]


HARMS: dict[str, Callable[[Backend, Mapping[str, str]], Harm]] = {
    "local": LocalHarm, "slurm": SlurmHarm, "kubernetes": KubernetesHarm,
}


def _signal_command(pattern: str, signal: str, run: Run, *variables: str) -> list[str]:
    return ["bash", "-c", _SIGNAL, "signal", pattern, signal, f"LAUNCH_RUN_ID={run.run_id}", *variables]


def _signal(pattern: str, signal: str, run: Run, *variables: str) -> shell.Completed:
    return shell.try_command(_signal_command(pattern, signal, run, *variables))


def _must(done: shell.Completed, what: str, run: Run) -> None:
    if done.returncode:
        said = done.stderr.strip().splitlines()
        raise BackendError(f"{run.run_id}: {what} has no process to signal" + (f": {said[-1]}" if said else ""),
                           f"see its state: launch status {run.run_id}")


def _rank(run: Run, rank: int) -> list[str]:
    """A job of one process has no ranks: nothing tells its process a RANK."""
    return [f"RANK={rank}"] if run.nodes * run.processes_per_node > 1 else []


def _job_id(run: Run) -> str:
    if run.job_id is None:
        raise BackendError(f"{run.run_id}: this machine does not know its number in Slurm", "submit it from here")
    return run.job_id
