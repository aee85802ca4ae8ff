"""What every back end does, and the words all of them use."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from launcher.logs.line import Batch, LogQuery
from launcher.logs.line import LogLine as LogLine  # noqa: PLC0414  (part of this interface)
from launcher.plan import Plan
from launcher.runs import Run
from launcher.snapshot import Snapshot


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
