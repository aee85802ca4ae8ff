"""What a job kind wants to be run: all that the plan, the renderers and the back ends know of a job's kind. Pure."""

from collections.abc import Callable
from dataclasses import dataclass, field

STOPPED = 75  # EX_TEMPFAIL: ended because it was asked to, nothing lost


@dataclass(frozen=True)
class FilePath:
    """A word of a command: the path at which the job finds one of its files."""

    name: str


Word = str | FilePath


@dataclass(frozen=True)
class ExitCodes:
    """What a kind's exit codes mean. Every kind's 75 after a request to stop is free of charge."""

    meanings: dict[int, str] = field(default_factory=dict)
    final: tuple[int, ...] = ()  # the same job would fail again: it is not restarted
    vouched: bool = False  # 75 comes only after a request to stop, so that whoever made none need not know of it


@dataclass(frozen=True)
class Outputs:
    """What a job leaves. `folder`: as the job itself names it; `patterns`: its small files, which are copied to the run
    folder; `owner_file`: a file in it that says whose it is (JSON with the run's id under `run`)."""

    folder: str
    patterns: tuple[str, ...] = ()
    owner_file: str | None = None


@dataclass(frozen=True)
class Payload:
    """What is started once on every node.

    `files`: small files that it reads, by name. `env`: below what the job's own `env` says. `ports`: what it serves on
    each node, by name. `rendezvous`: its nodes find each other through MASTER_ADDR and MASTER_PORT. `log_copy`: it
    keeps a copy of its log below LAUNCH_LOG_ARCHIVE, from which this command prints a part (file, from, to).
    """

    kind: str
    argv: tuple[Word, ...]
    files: dict[str, str] = field(default_factory=dict)
    env: dict[str, str] = field(default_factory=dict)
    ports: dict[str, int] = field(default_factory=dict)
    rendezvous: bool = True
    exit_codes: ExitCodes = field(default_factory=ExitCodes)
    outputs: Outputs | None = None
    log_copy: tuple[str, ...] | None = None

    def words(self, path: Callable[[str], str], text: Callable[[str], str] = str) -> list[str]:
        """The command; `path` makes a word of a file's name, `text` one of any other word."""
        return [path(word.name) if isinstance(word, FilePath) else text(word) for word in self.argv]
