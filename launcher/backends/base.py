"""What every back end does."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from launcher.errors import LaunchError
from launcher.job.code.snapshot import Snapshot
from launcher.job.profile import Profile
from launcher.job.rendered import Rendered
from launcher.logs.line import Batch, LogQuery
from launcher.logs.line import LogLine as LogLine  # noqa: PLC0414  (part of this interface)
from launcher.runs.record import Run
from launcher.runs.status import JobStatus, State


@dataclass(frozen=True)
class Submission:
    """What a back end needs at submit that cannot be in a render: secret values, and where things lie."""

    secrets: dict[str, str] = field(repr=False)
    run_dir: Path
    job_dir: Path
    snapshot: Snapshot | None = None


@dataclass(frozen=True)
class Sent:
    """A run that was sent: its address, and what its back end needs to find it again (Run.place)."""

    handle: str
    place: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class LostNode:
    """A node of a run on a machine that no longer answers. `key` is how the back end finds it again."""

    node: int
    host: str
    key: tuple[str, ...] = field(repr=False)


@dataclass(frozen=True)
class Orphan:
    """Something that a run has left behind. `where` and `why` are for people, `key` for the back end."""

    kind: str
    name: str
    where: str
    why: str
    key: tuple[str, ...] = field(default=(), repr=False)


class Backend(ABC):
    """A place that runs jobs. Every method may raise BackendError; `cancel` may be called twice. What only some back
    ends can do besides is in the classes below, which they inherit, too."""

    @abstractmethod
    def check(self, rendered: Rendered) -> None:
        """Ask the cluster whether it would take this, sending nothing that stays."""

    def place(self, rendered: Rendered) -> dict[str, str]:
        """As much of Run.place as is known before anything is sent: it finds a run whose submit was killed."""
        return {}

    def notes(self) -> list[str]:
        """What of the submitter's environment a job does not get, although they may think so."""
        return []

    @abstractmethod
    def submit(self, rendered: Rendered, submission: Submission) -> Sent:
        """Send what was rendered. On failure nothing stays behind."""

    @abstractmethod
    def status(self, run: Run) -> JobStatus:
        """How the run is."""

    def statuses(self, runs: Sequence[Run], warn: Callable[[str], None]) -> dict[str, JobStatus]:
        """How many runs are, by id, for a list: a back end that can asks for all at once, and may leave out what only
        explains (nodes, why a run waits). What does not answer is warned about, and its runs are unknown."""
        return {run.run_id: self._status_or_unknown(run, warn) for run in runs}

    @abstractmethod
    def logs(self, run: Run, query: LogQuery) -> Iterator[Batch]:
        """The lines that are asked for, some at a time: in order for each node, each line once.

        With `query.follow` it ends when the run has ended and every line was given; without, at once.
        """

    @abstractmethod
    def cancel(self, run: Run) -> None:
        """End the run and remove what was made for it. Calling it again, or after the end, changes nothing."""

    def _status_or_unknown(self, run: Run, warn: Callable[[str], None]) -> JobStatus:
        try:
            return self.status(run)
        except LaunchError as error:
            warn(f"{run.run_id}: {error.message.splitlines()[0]}")
            return JobStatus(State.UNKNOWN)


class RepairsNodes(ABC):
    """Nodes on lost machines are not replaced until somebody says that they are lost (Slurm requeues by itself)."""

    @abstractmethod
    def lost(self, run: Run) -> list[LostNode]:
        """Nodes on lost machines that nobody replaces by itself."""

    @abstractmethod
    def repairs_unasked(self, run: Run) -> bool:
        """Whether the cluster's profile says that lost nodes are repaired without asking."""

    @abstractmethod
    def repair(self, run: Run, lost: list[LostNode]) -> None:
        """Give up what ran on these machines, so that it is started again elsewhere. They must really be gone."""


class KeepsObjects(ABC):
    """What was made for a run stays for a while after its end."""

    @abstractmethod
    def drop_secrets(self, run: Run) -> None:
        """Remove the secrets of a run that has ended. Called when that is first seen."""

    @abstractmethod
    def discard(self, run: Run) -> None:
        """Remove all that an ended run has left there. Calling it again changes nothing."""


class LeavesOrphans(ABC):
    """Runs may leave something behind."""

    @abstractmethod
    def orphans(self, profile: Profile | None, warn: Callable[[str], None]) -> list[Orphan]:
        """What runs that have ended have left where this machine's runs were, and where `profile` points to. A place
        that cannot be looked at is only warned about."""

    @abstractmethod
    def remove(self, orphan: Orphan) -> None:
        """Remove one. It may be gone already."""


class InjectsFaults(ABC):
    """Faults can be injected into a run, for drills."""

    @abstractmethod
    def preempt(self, run: Run, node: int) -> None:
        """Take a node away as a scheduler does, with time for a checkpoint."""

    @abstractmethod
    def kill_rank(self, run: Run, rank: int) -> None:
        """End one of the job's processes at once."""

    @abstractmethod
    def skip_wait(self, run: Run, ended: Callable[[], bool]) -> None:
        """Skip what the back end waits before it starts the job again; returns when it has, or when `ended()`."""
