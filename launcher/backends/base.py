"""What every back end does, and the words all of them use."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from launcher.logs.line import Batch, LogQuery
from launcher.logs.line import LogLine as LogLine  # noqa: PLC0414  (part of this interface)
from launcher.plan import Plan
from launcher.runs import Run
from launcher.snapshot import Snapshot
from launcher.spec import ClusterProfile


class State(StrEnum):
    """The states of a run on every back end."""

    PENDING = "pending"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    UNKNOWN = "unknown"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self in (State.SUCCEEDED, State.FAILED, State.CANCELLED)


EXIT_CODES = {
    70: "training diverged",
    78: "wrong configuration or data",
    126: "the command may not be run",
    127: "the command was not found",
    137: "killed (SIGKILL)",
    139: "crashed (SIGSEGV)",
    143: "stopped (SIGTERM)",
}


def exit_words(code: int | None) -> str:
    """An exit code for people."""
    meaning = f" ({EXIT_CODES[code]})" if code in EXIT_CODES else ""
    return f"exit code {code}{meaning}"


@dataclass(frozen=True)
class NodeStatus:
    """One node of a run."""

    node: int
    state: State
    host: str | None = None
    exit_code: int | None = None
    reason: str | None = None
    restarts: int = 0


@dataclass(frozen=True)
class JobStatus:
    """A run as its back end sees it. `reason` says in plain words why it waits or how it ended."""

    state: State
    reason: str | None = None
    exit_code: int | None = None
    nodes: tuple[NodeStatus, ...] = ()


@dataclass(frozen=True)
class Artifact:
    """What `launch render` prints and what `submit` sends: the same text, and nothing else."""

    backend: str
    run_id: str
    text: str
    suffix: str = field(default=".sh")


@dataclass(frozen=True)
class Submission:
    """What a back end needs at submit that cannot be in a render: secret values, and where things lie."""

    secrets: dict[str, str] = field(repr=False)
    run_dir: Path
    job_dir: Path
    snapshot: Snapshot | None = None


@dataclass(frozen=True)
class LostNode:
    """A node of a run on a machine that no longer answers. `key` is how the back end finds it again."""

    node: int
    host: str
    key: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True)
class Stray:
    """Something that a run has left behind. `where` and `why` are for people, `key` for the back end."""

    kind: str
    name: str
    where: str
    why: str
    key: tuple[str, ...] = field(default=(), repr=False)


class Backend(Protocol):
    """A place that runs jobs. Every method may raise BackendError; `cancel` may be called twice."""

    def render(self, plan: Plan) -> Artifact:
        """What would be sent. Pure, and the same bytes for the same plan."""

    def check(self, plan: Plan, artifact: Artifact) -> None:
        """Ask the cluster whether it would take this, sending nothing that stays."""

    def submit(self, plan: Plan, artifact: Artifact, submission: Submission) -> Run:
        """Send the artifact. On failure nothing stays behind."""

    def status(self, run: Run) -> JobStatus:
        """How the run is."""

    def logs(self, run: Run, query: LogQuery) -> Iterator[Batch]:
        """The lines that are asked for, some at a time: in order for each node, each line once.

        With `query.follow` it ends when the run has ended and every line was given; without, at once.
        """

    def cancel(self, run: Run) -> None:
        """End the run and remove what was made for it. Calling it again, or after the end, changes nothing."""

    def lost(self, run: Run) -> list[LostNode]:
        """Nodes on lost machines that nobody replaces by itself; none where the scheduler does (Slurm requeues)."""
        return []

    def repair(self, run: Run, lost: list[LostNode]) -> None:
        """Give up what ran on these machines, so that it is started again elsewhere. They must really be gone."""

    def strays(self, profile: ClusterProfile | None, warn: Callable[[str], None]) -> list[Stray]:
        """What runs that have ended have left where this machine's runs were, and where `profile` points to. A place
        that cannot be looked at is only warned about."""
        return []

    def remove(self, stray: Stray) -> None:
        """Remove one. It may be gone already."""
