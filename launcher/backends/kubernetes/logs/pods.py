"""The logs of a run's pods: every node at once, through lost connections, replaced pods and pods that come late.

Nothing is lost or given twice while the node keeps it; whatever was read is archived in the run folder, from which
the next reading goes on. What the node threw away while nobody read is told as a gap. One case cannot be seen: a log
that was rotated before anybody read it at all looks like one that begins late.
"""

import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path

from launcher.backends.kubernetes.logs import source as timing
from launcher.backends.kubernetes.logs.archive import ArchivedPod, ArchiveWriter, archived_pods
from launcher.backends.kubernetes.logs.fill import UnfilledError, missing_lines
from launcher.backends.kubernetes.logs.source import GoneError, Pod, PodCache, RetryPolicy, Source, Unreachable
from launcher.backends.kubernetes.logs.stamped import Position, Splitter, log_line
from launcher.errors import BackendError
from launcher.logs.handles import allow_open_files
from launcher.logs.line import Batch, Gap, LogLine, LogQuery, gap_line, picked, tailed
from launcher.logs.mux import merge

HALF_LINE_TRIES = 3  # whether an ended log's last line lacks its line end, or only the connection was cut there
FILLED = 1000  # lines of a batch that was found in the job's own copy
_DELETED = "its pod was deleted before it was read to the end"


def read_logs(source: Source, folder: Path, nodes: list[int], query: LogQuery, *,
              picks: Callable[[LogLine], bool] | None = None, stop: threading.Event) -> Iterator[Batch]:
    """The lines of these nodes. With `query.follow`, until the run has ended and every line was given, or until
    `stop`."""
    allow_open_files(2 * len(nodes))  # a connection and an archive each
    cache = PodCache(source, stop, pause_s=timing.look_every_s(len(nodes)),
                     give_up_s=timing.GIVE_UP_S if query.follow else timing.QUICK_GIVE_UP_S)
    readers = [_NodeReader(node, cache, folder) for node in nodes]
    streams = [reader.read(query, picks) for reader in readers]
    try:
        if query.follow:
            yield from merge(streams, stop)
        else:
            for stream in streams:
                yield from stream
    finally:
        stop.set()
        source.close()
        for reader in readers:
            reader.close()


class _NodeReader:
    """The attempts of one node, one after the other: each is read to its end before the next begins."""

    def __init__(self, node: int, cache: PodCache, folder: Path) -> None:
        self.node = node
        self.cache = cache
        self.folder = folder
        self._readers: dict[str, _PodReader] = {}
        self._finished: set[str] = set()

    def read(self, query: LogQuery, picks: Callable[[LogLine], bool] | None) -> Iterator[Batch]:
        """What is wanted of what there is, then of what comes."""
        yield from tailed(picked(self._catch_up(), picks), query.tail)
        if query.follow:
            yield from picked(self._follow(), picks)

    def close(self) -> None:
        """Leave the archive to other processes."""
        for reader in self._readers.values():
            reader.writer.close()

    def _catch_up(self) -> Iterator[Batch]:
        """Every line there is now, those of pods that are gone first."""
        pods, _ = self.cache.look(self.node)
        known = {pod.name for pod in pods}
        for archived in archived_pods(self.folder, self.node):
            if archived.pod not in known:
                yield from archived.batches()
        for pod in pods:
            if pod.started:
                yield from self._read(pod, follow=False)

    def _follow(self) -> Iterator[Batch]:
        """What comes after that, until the run has ended."""
        while not self.cache.stop.is_set():
            pods, over = self.cache.look(self.node)
            yield from self._gone({pod.name for pod in pods})
            waiting = [pod for pod in pods if pod.started and pod.name not in self._finished]
            for pod in waiting:
                yield from self._read(pod, follow=True)
            if over and not waiting:
                return
            self.cache.stop.wait(self.cache.pause_s)

    def _read(self, pod: Pod, *, follow: bool) -> Iterator[Batch]:
        reader = self._readers.get(pod.name) or _PodReader(pod, self.cache, self.folder)
        self._readers[pod.name] = reader
        yield from reader.read(follow=follow)
        if follow or pod.ended:
            self._finish(reader)

    def _gone(self, there: set[str]) -> Iterator[Batch]:
        """Tell of pods that were not read to their end and are there no more."""
        for name, reader in self._readers.items():
            if name not in there and name not in self._finished:
                yield from reader.gone()
                self._finish(reader)

    def _finish(self, reader: "_PodReader") -> None:
        self._finished.add(reader.pod.name)
        reader.writer.close()


class _PodReader:
    """One pod's log: first what the archive has of it, then what comes from the cluster."""

    def __init__(self, pod: Pod, cache: PodCache, folder: Path) -> None:
        self.pod = pod
        self.cache = cache
        self.position = Position()
        archived = ArchivedPod(folder, pod.node, pod.born, pod.name)
        self.writer = ArchiveWriter(archived)
        self._kept = archived.batches(self.position)
        self._last_gap: Gap | None = None
        self._cut_off = True  # whether lines may have come after the last answer
        self._tries = 0

    def read(self, *, follow: bool) -> Iterator[Batch]:
        """The lines that were not given yet; with `follow` until the pod has ended."""
        for batch in self._kept:
            self._last_gap = batch[-1].gap
            yield batch
        retry = RetryPolicy(self.cache.stop, self.cache.give_up_s)
        while not self.cache.stop.is_set():
            # The end of a stream is not the end of the pod: a log is complete that was opened after the end.
            ended = self._ended(retry, follow=follow)
            if ended is None:
                yield from self.gone()
                return
            if (yield from self._attempt(retry, ended=ended, follow=follow)):
                return

    def _ended(self, retry: RetryPolicy, *, follow: bool) -> bool | None:
        if not follow or self.pod.ended:
            return self.pod.ended
        ended = self.cache.with_retries(lambda: self.cache.source.has_ended(self.pod))
        if not ended:  # a running pod is waited for, whatever its node says
            retry.answered()
        return ended

    def _attempt(self, retry: RetryPolicy, *, ended: bool, follow: bool) -> Generator[Batch, None, bool]:
        """One request; returns whether it was the last."""
        splitter, came = Splitter(), False
        try:
            for batch in self._stream(splitter, follow=follow):
                came = True
                retry.reset()
                yield batch
        except GoneError:
            yield from self.gone()
            return True
        except Unreachable as error:
            self._cut_off = True
            if error.pod_only and retry.failing_s() > timing.QUICK_GIVE_UP_S:
                yield [gap_line(self.pod.node, Gap(self._last(), None, f"its node does not return them: {error}"))]
                return True
            retry.failed(error)
            return False
        self._cut_off = bool(splitter.rest) or not (follow or ended)
        self._tries = 0 if came else self._tries + 1
        if ended and not came and (self._tries >= HALF_LINE_TRIES or not splitter.rest):
            yield from self._end(splitter.rest)
            return True
        if not (ended and came):  # what ended early, as a proxy may have done, is asked for again at once
            retry.pause()
        return not (follow or ended)

    def _stream(self, splitter: Splitter, *, follow: bool) -> Iterator[Batch]:
        """The new lines of one answer. Raises Unreachable also for an answer that is no log."""
        since = self.position.resume()
        some = False
        for lines in splitter.lines(self.cache.source.stream(self.pod, since, follow=follow)):
            some = some or bool(lines)
            before = list(self.position.recent)
            gap, new = self.position.take(lines)
            yield from self._missing(gap, before, new)
            if self.cache.stop.is_set():  # nothing may be kept behind a gap that is not
                return
            if new:
                self.writer.append(new)
                yield [log_line(self.pod.node, line) for line in new]
        if splitter.unstamped and not some:
            raise Unreachable(BackendError(splitter.unstamped.decode("utf-8", errors="replace")), pod_only=True)

    def _end(self, rest: bytes) -> Iterator[Batch]:
        """A last line without a line end, or what is missing there."""
        if rest:
            _, new = self.position.take([rest])
            self.writer.append(new)
            yield [log_line(self.pod.node, line) for line in new]
        yield from self._missing(self.position.missing_end(), list(self.position.recent))

    def gone(self) -> Iterator[Batch]:
        """What is missing of a pod that has no log any more."""
        if self._cut_off:
            yield from self._missing(Gap(self._last(), None, _DELETED), list(self.position.recent))

    def _missing(self, gap: Gap | None, before: list[bytes], after: Sequence[bytes] = ()) -> Iterator[Batch]:
        """The lines of a gap from the job's own copy, or word of it; once, and not when interrupted meanwhile."""
        if gap is None or (self._last_gap and gap[:2] == self._last_gap[:2]):
            return
        self._last_gap = gap
        try:
            found = self._copied(gap, before, after)
        except UnfilledError as error:
            gap, found = gap._replace(why=f"{gap.why}, and the log archive does not have them: {error}"), None
        if self.cache.stop.is_set():
            return
        if found is None:
            self.writer.append_gap(gap)
            yield [gap_line(self.pod.node, gap)]
            return
        for start in range(0, len(found), FILLED):
            lines = found[start:start + FILLED]
            self.writer.append(lines)
            yield [log_line(self.pod.node, line) for line in lines]

    def _copied(self, gap: Gap, before: list[bytes], after: Sequence[bytes]) -> list[bytes] | None:
        """The missing lines; None of a job that keeps no copy."""
        since = gap.after if before else None
        copy = self.cache.with_retries(lambda: self.cache.source.copied(self.pod, since, gap.before))
        return None if copy is None else missing_lines(copy, before, after, gap)

    def _last(self) -> str:
        """When the last line came, or the pod."""
        return self.position.last or self.pod.born
