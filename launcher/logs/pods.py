"""The logs of a run's pods: every node at once, through lost connections, replaced pods and pods that come late.

Nothing is lost or given twice while the node keeps it; whatever was read is archived in the run folder, from which
the next reading goes on.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from launcher.backends.base import LogLine
from launcher.logs.mux import merge
from launcher.logs.stamped import ArchivedPod, ArchiveWriter, Position, archived_pods, log_line, whole_lines

LOOK_S = 0.5
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
GIVE_UP_S = 900.0


@dataclass(frozen=True)
class Pod:
    """One attempt of one node. `started`: there may be a log; `ended`: nothing is added to it."""

    node: int
    name: str
    born: str
    started: bool
    ended: bool


class Source(Protocol):
    """Where the logs come from. Everything may raise `Unreachable`, after which it is asked again."""

    def pods(self) -> tuple[list[Pod], bool]:
        """The pods by age, and whether the run has ended, so that no more will come."""

    def has_ended(self, pod: Pod) -> bool | None:
        """Whether the pod has ended; None when it is gone."""

    def stream(self, pod: Pod, since: str | None, *, follow: bool) -> Iterator[bytes]:
        """Its log from that second on."""


class Unreachable(Exception):  # noqa: N818  (a state of the connection; `cause` is the error a user would see)
    """The cluster does not answer for now."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class GoneError(Exception):
    """This pod has no log (any more)."""


Batch = list[LogLine]


def read_logs(source: Source, folder: Path, nodes: list[int], *, follow: bool, tail: int | None,
              stop: threading.Event | None = None) -> Iterator[LogLine]:
    """The lines of these nodes. With `follow`, until the run has ended and every line was given."""
    stop = stop or threading.Event()
    feed = _Feed(source, stop, pause_s=max(LOOK_S, len(nodes) / 100))
    readers = [_NodeReader(node, feed, folder) for node in nodes]
    try:
        for reader in readers:
            for batch in _tailed(reader.catch_up(), tail):
                yield from batch
        if follow:
            for batch in merge([reader.follow() for reader in readers], stop):
                yield from batch
    finally:
        stop.set()
        for reader in readers:
            reader.close()


def read_archive(folder: Path, nodes: list[int], *, tail: int | None) -> Iterator[LogLine]:
    """What was archived of these nodes, when the pods are gone."""
    for node in nodes:
        kept = ([log_line(node, line) for line in pod.lines()] for pod in archived_pods(folder) if pod.node == node)
        for batch in _tailed(kept, tail):
            yield from batch


def _tailed(batches: Iterator[Batch], tail: int | None) -> Iterator[Batch]:
    if tail is None:
        yield from batches
    else:
        yield list(deque((line for batch in batches for line in batch), maxlen=tail))


@dataclass
class _Feed:
    """What all readers share: the list of pods, asked for once in `pause_s` by whoever needs it first."""

    source: Source
    stop: threading.Event
    pause_s: float
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _looked: float = float("-inf")
    _pods: list[Pod] = field(default_factory=list)
    _over: bool = False

    def look(self) -> tuple[list[Pod], bool]:
        with self._lock:
            if not self._over and time.monotonic() - self._looked >= self.pause_s:
                self._pods, self._over = self.patiently(self.source.pods)
                self._looked = time.monotonic()
            return self._pods, self._over

    def patiently[T](self, ask: Callable[[], T]) -> T:
        """Ask until there is an answer; raises the cause when there was none for GIVE_UP_S."""
        pause, deadline = FIRST_PAUSE_S, time.monotonic() + GIVE_UP_S
        while True:
            try:
                return ask()
            except Unreachable as error:
                if self.stop.wait(pause) or time.monotonic() > deadline:
                    raise error.cause from error
                pause = min(2 * pause, LONGEST_PAUSE_S)
