"""How a run is, in the words that all back ends use. Pure."""

from dataclasses import dataclass
from enum import StrEnum


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
