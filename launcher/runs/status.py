"""How a run is, in the words that all back ends use. Pure."""

from collections.abc import Mapping
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


# What a shell's own exit codes mean, whatever it runs.
_OF_THE_SHELL = {
    "126": "the command may not be run",
    "127": "the command was not found",
    "137": "killed by SIGKILL",
    "139": "crashed with SIGSEGV",
    "143": "stopped by SIGTERM",
}


def exit_words(code: int | None, meanings: Mapping[str, str]) -> str:
    """An exit code for people. `meanings`: those of the run's kind (Run.exit_codes)."""
    meaning = meanings.get(str(code)) or _OF_THE_SHELL.get(str(code))
    return f"exit code {code}" + (f" ({meaning})" if meaning else "")


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
    """A run as its back end sees it. `reason` says in plain words why it waits or how it ended; `ended_at` when, if the
    back end knows; `gone`: the back end has nothing of it any more, so nothing more will happen."""

    state: State
    reason: str | None = None
    exit_code: int | None = None
    nodes: tuple[NodeStatus, ...] = ()
    ended_at: str | None = None
    gone: bool = False

    @property
    def is_over(self) -> bool:
        """Whether nothing of the run is left to be ended."""
        return self.state.ended or self.gone
