"""What a job kind is, and what it may be able to do besides. The kinds themselves are in launcher/kinds/."""

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from launcher.job.payload import Payload
from launcher.job.spec import Mount, Resources

Loc = tuple[str | int, ...]  # where something stands in a kind's section


@dataclass(frozen=True)
class Context:
    """What a kind may know of the place that its job goes to. `own_folder`: what it writes goes to a folder of the
    run's own, although the job names one."""

    run_id: str
    python: str
    resources: Resources
    mounts: tuple[Mount, ...] = ()
    own_folder: bool = False


@dataclass(frozen=True)
class Input:
    """A path that a job reads. `loc`: where its section names it; `allowed`: what may stand there."""

    loc: Loc
    path: str
    allowed: str
    is_folder: bool = False


class Kind(ABC):
    """One thing that a job can do. `key` is its section in a job file, `model` the type of what stands there."""

    key: ClassVar[str]
    model: ClassVar[Any]
    description: ClassVar[str]

    @abstractmethod
    def payload(self, section: Any, context: Context) -> Payload:
        """What is to be run. Pure: the same payload for the same section and context."""

    def owns_folder(self, section: Any) -> bool:
        """Whether a run writes to a folder that is named after it, since the job names none."""
        return False


class Resumable(ABC):
    """A kind whose runs can go on with what an earlier run has left."""

    @abstractmethod
    def going_on(self, section: Any, folder: str) -> Any:
        """The section that goes on in this output folder."""

    @abstractmethod
    def settled(self, folder: str) -> dict[Loc, str]:
        """What going on in this output folder settles, whatever the section says: fields of it, and their values."""


class Estimable(ABC):
    """A kind whose needs can be estimated before it runs."""

    @abstractmethod
    def assess(self, section: Any, prepared: Any, gpu_memory: str | None = None) -> Any:
        """The job weighed (kinds/train/assess.Assessment). Raises SpecError for what could never run."""


class ReadsFiles(ABC):
    """A kind whose section names files and folders. `output_field`: the one that names where it writes."""

    output_field: ClassVar[Loc]

    @abstractmethod
    def inputs(self, section: Any) -> Iterator[Input]:
        """What must be there before the job starts, as far as it can only be a path: no address, and no name that a hub
        may know. `section`: checked, or raw as it stands in the file."""


class ShowsData(ABC):
    """A kind that reads rows, which `launch data` shows. `data_file` is the file of its payload that says which."""

    data_file: ClassVar[str]
