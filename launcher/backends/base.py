"""What every back end does."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from launcher.job.code.snapshot import Snapshot
from launcher.job.plan import Plan
from launcher.job.spec import ClusterProfile
from launcher.logs.line import Batch, LogQuery
from launcher.logs.line import LogLine as LogLine  # noqa: PLC0414  (part of this interface)
from launcher.runs.status import JobStatus
from launcher.runs.store import Run


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
