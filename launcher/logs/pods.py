"""The logs of a run's pods: every node at once, through lost connections, replaced pods and pods that come late.

Nothing is lost or given twice while the node keeps it; whatever was read is archived in the run folder, from which
the next reading goes on.
"""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from launcher.logs.line import Batch, LogLine, LogQuery, picked, tailed
from launcher.logs.mux import merge
from launcher.logs.stamped import ArchivedPod, ArchiveWriter, Position, archived_pods, log_line, whole_lines

T = TypeVar("T")

LOOK_S = 0.5
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
GIVE_UP_S, PATIENCE_S = 900.0, 10.0  # when following, and when only looking


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



def read_logs(source: Source, folder: Path, nodes: list[int], query: LogQuery, *,
              picks: Callable[[LogLine], bool] | None = None, stop: threading.Event) -> Iterator[Batch]:
    """The lines of these nodes. With `query.follow`, until the run has ended and every line was given, or until
    `stop`."""
    feed = _Feed(source, stop, pause_s=max(LOOK_S, len(nodes) / 100),
                 give_up_s=GIVE_UP_S if query.follow else PATIENCE_S)
    readers = [_NodeReader(node, feed, folder) for node in nodes]
    try:
        for reader in readers:
            yield from tailed(picked(reader.catch_up(), picks), query.tail)
        if query.follow:
            yield from picked(merge([reader.follow() for reader in readers], stop), picks)
    finally:
        stop.set()
        for reader in readers:
            reader.close()


def _archived(pods: Iterable[ArchivedPod]) -> Iterator[Batch]:
    for pod in pods:
        for lines in pod.batches():
            yield [log_line(pod.node, line) for line in lines]


class _Patience:
    """Longer and longer pauses while the cluster does not answer; in the end the reason is raised."""

    def __init__(self, stop: threading.Event, give_up_s: float) -> None:
        self._stop = stop
        self._give_up_s = give_up_s
        self.reset()

    def reset(self) -> None:
        """There was something to read."""
        self._pause = FIRST_PAUSE_S
        self.answered()

    def answered(self) -> None:
        """The cluster is there, whatever else is wrong."""
        self._since: float | None = None

    def pause(self) -> None:
        """Wait a little longer than the last time."""
        self._stop.wait(self._pause)
        self._pause = min(2 * self._pause, LONGEST_PAUSE_S)

    def failed(self, error: Unreachable) -> None:
        """Wait, or give up."""
        self._since = self._since or time.monotonic()
        if time.monotonic() - self._since > self._give_up_s or self._stop.is_set():
            raise error.cause from error
        self.pause()


class _Feed:
    """What all readers share: the list of pods, asked for once in `pause_s` by whoever needs it first."""

    def __init__(self, source: Source, stop: threading.Event, *, pause_s: float, give_up_s: float) -> None:
        self.source = source
        self.stop = stop
        self.pause_s = pause_s
        self.give_up_s = give_up_s
        self._lock = threading.Lock()
        self._looked = float("-inf")
        self._pods: list[Pod] = []
        self._over = False

    def look(self) -> tuple[list[Pod], bool]:
        """The pods, and whether no more will come."""
        with self._lock:
            if not self._over and time.monotonic() - self._looked >= self.pause_s:
                self._pods, self._over = self.patiently(self.source.pods)
                self._looked = time.monotonic()
            return self._pods, self._over

    def patiently(self, ask: Callable[[], T]) -> T:
        """Ask until there is an answer."""
        patience = _Patience(self.stop, self.give_up_s)
        while True:
            try:
                return ask()
            except Unreachable as error:
                patience.failed(error)


class _NodeReader:
    """The attempts of one node, one after the other: each is read to its end before the next begins."""

    def __init__(self, node: int, feed: _Feed, folder: Path) -> None:
        self.node = node
        self.feed = feed
        self.folder = folder
        self._readers: dict[str, _PodReader] = {}
        self._finished: set[str] = set()

    def catch_up(self) -> Iterator[Batch]:
        """Every line there is now, those of pods that are gone first."""
        pods = self._pods()
        known = {pod.name for pod in pods}
        yield from _archived(pod for pod in archived_pods(self.folder, self.node) if pod.pod not in known)
        for pod in pods:
            if pod.started:
                yield from self._read(pod, follow=False)

    def follow(self) -> Iterator[Batch]:
        """What comes after that, until the run has ended."""
        while not self.feed.stop.is_set():
            over = self.feed.look()[1]
            waiting = [pod for pod in self._pods() if pod.started and pod.name not in self._finished]
            for pod in waiting:
                yield from self._read(pod, follow=True)
            if over and not waiting:
                return
            self.feed.stop.wait(self.feed.pause_s)

    def close(self) -> None:
        """Leave the archive to other processes."""
        for reader in self._readers.values():
            reader.writer.close()

    def _pods(self) -> list[Pod]:
        return [pod for pod in self.feed.look()[0] if pod.node == self.node]

    def _read(self, pod: Pod, *, follow: bool) -> Iterator[Batch]:
        reader = self._readers.get(pod.name) or _PodReader(pod, self.feed, self.folder)
        self._readers[pod.name] = reader
        yield from reader.read(follow=follow)
        if follow or pod.ended:
            self._finished.add(pod.name)
            reader.writer.close()


class _PodReader:
    """One pod's log: first what the archive has of it, then what comes from the cluster."""

    def __init__(self, pod: Pod, feed: _Feed, folder: Path) -> None:
        self.pod = pod
        self.feed = feed
        self.position = Position()
        self.archived = ArchivedPod(folder, pod.node, pod.born, pod.name)
        self.writer = ArchiveWriter(self.archived)
        self._kept = self.archived.batches()

    def read(self, *, follow: bool) -> Iterator[Batch]:
        """The lines that were not given yet; with `follow` until the pod has ended."""
        for lines in self._kept:
            yield self._lines([line for line in lines if self.position.is_new(line)])
        patience = _Patience(self.feed.stop, self.feed.give_up_s)
        while not self.feed.stop.is_set():
            # The end of a stream is not the end of the pod: only a log that was opened after the end is complete.
            ended: bool | None = True
            if follow and not self.pod.ended:
                ended = self.feed.patiently(lambda: self.feed.source.has_ended(self.pod))
                patience.answered()
            if ended is None:
                return
            try:
                for batch in self._stream(follow=follow):
                    patience.reset()
                    yield batch
            except GoneError:
                return
            except Unreachable as error:
                patience.failed(error)
                continue
            if ended:
                return
            patience.pause()

    def _stream(self, *, follow: bool) -> Iterator[Batch]:
        for lines in whole_lines(self.feed.source.stream(self.pod, self.position.resume(), follow=follow)):
            new = [line for line in lines if self.position.is_new(line)]
            self.writer.append(new)
            yield self._lines(new)

    def _lines(self, lines: list[bytes]) -> Batch:
        return [log_line(self.pod.node, line) for line in lines]
