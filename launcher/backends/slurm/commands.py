"""Slurm's own commands: what they print, and their refusals as errors of ours with the next command."""

from typing import Any

from launcher.backends import processes
from launcher.errors import BackendError

_WHERE = "in the cluster's profile, or in `sbatch` of the job"
# What Slurm says -> the next command.
REFUSALS = (
    ("gres", "see the GPUs: sinfo --format='%P %G'; then set sbatch.gpu_type"),
    ("reservation", "see the reservations: scontrol show reservation; then set sbatch.reservation"),
    ("license", "see the licenses: scontrol show licenses; then set sbatch.licenses"),
    ("partition", f"see the partitions: sinfo --summarize; then set `partition` {_WHERE}"),
    ("account", f"see your accounts: sacctmgr show associations user=$USER; then set `account` {_WHERE}"),
    ("qos", f"see yours: sacctmgr show associations user=$USER format=account,qos; then set `qos` {_WHERE}"),
    ("feature", f"see the nodes' features: sinfo --format='%n %f'; then set `constraint` {_WHERE}"),
    ("node configuration", "see what a node has: sinfo --format='%P %D %c %m %G'; then lower `resources`, or set "
                           "sbatch.gpu_type"),
    ("time limit", "see the limits: sinfo --format='%P %l'; then lower resources.time_limit"),
    ("memory", "see what a node has: sinfo --format='%P %m'; then lower resources.memory_per_node"),
    ("configuration source", "run launch on a machine of the cluster, or set SLURM_CONF"),
    ("contact slurm controller", "is the cluster up? ask it: scontrol ping"),
    ("no such command", "run launch on a login node of the cluster"),
)


class SlurmCommands:
    """Runs them with the user's environment, unless told of another."""

    def __init__(self, environ: dict[str, str]) -> None:
        self.environ = environ

    def printed(self, argv: list[str], **more: Any) -> str:
        """What a command prints. Raises BackendError with its words when it fails."""
        done = self.tried(argv, **more)
        if done.returncode:
            raise refusal(done)
        return done.stdout

    def tried(self, argv: list[str], **more: Any) -> processes.Completed:
        """How a command ended. Raises BackendError when it cannot be started or does not answer."""
        try:
            return processes.try_command(argv, **{"env": self.environ, **more})
        except BackendError as error:
            raise BackendError(error.message, _hint(error.message)) from error


def refusal(done: processes.Completed) -> BackendError:
    """Slurm's own words, and what to do about them."""
    words = (done.stderr.strip() or done.stdout.strip() or f"exit code {done.returncode}").splitlines()
    said = "; ".join(line.partition("error: ")[2] or line for line in words)
    return BackendError(f"{done.args[0]}: {said}", _hint(said))


def _hint(words: str) -> str | None:
    return next((hint for part, hint in REFUSALS if part in words.lower()), None)
