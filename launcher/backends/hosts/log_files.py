"""Following log files `node-N*.log` that grow in a run folder. Order is kept for each node; each line comes once."""

import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from launcher.backends.hosts.log_times import BLOCK, LogTimes
from launcher.errors import SpecError
from launcher.logs.line import Batch, LogLine, LogQuery, last_drawing, picked, tailed

POLL_S = 0.1
CLOCKS_DIFFER = timedelta(seconds=1)


@dataclass
class _File:
    """One file being read. `rest` is a last line that has no line end yet, `shown` what was given of it."""

    path: Path
    node: int
    offset: int = 0
    rest: bytes = b""
    shown: bytes = b""

    def read(self) -> Iterator[Batch]:
        """The whole lines that were added, a block at a time."""
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return
        with file:
            file.seek(self.offset)
            while block := file.read(BLOCK):
                self.offset += len(block)
                *whole, self.rest = (self.rest + block).split(b"\n")
                if b"\r" in self.rest:  # redrawn for hours without a line end, it would grow without bound
                    self.rest = last_drawing(self.rest) + b"\r" * self.rest.endswith(b"\r")
                yield [LogLine(self.node, last_drawing(line)) for line in whole]

    def close(self) -> Iterator[Batch]:
        """A last line without a line end."""
        if self.rest:
            yield [LogLine(self.node, last_drawing(self.rest))]
            self.rest = b""

    def live(self) -> Iterator[Batch]:
        """The state of the unfinished line, when it is another than before."""
        drawing = last_drawing(self.rest)
        if drawing and drawing != self.shown:
            yield [LogLine(self.node, drawing, live=True)]
        self.shown = drawing


class LogFiles:
    """The log files of a run's nodes: one a node, or one for each of its attempts, by number after the node's."""

    def __init__(self, folder: Path, nodes: list[int], *, began: str, ended: Callable[[], bool],
                 sleep: Callable[[float], None] = time.sleep) -> None:
        self.folder = folder
        self.nodes = nodes
        self.began = datetime.fromisoformat(began)
        self.ended = ended
        self.sleep = sleep
        self._files: dict[Path, _File] = {}

    def read(self, query: LogQuery, *, picks: Callable[[LogLine], bool] | None = None) -> Iterator[Batch]:
        """The lines that are wanted; with `query.follow`, until `ended()`, and of files that come later, too.

        `ended` is asked before the last reading, so nothing written before the end is missed.
        Raises SpecError when `query.since` cuts through a file of a run that left no marks of its times.
        """
        if query.since:
            self._skip(query.since)
        tail = query.tail
        while True:
            last = not query.follow or self.ended()
            for node in self.nodes:
                yield from tailed(picked(self._added(node, last=last, live=query.live), picks), tail)
            if last:
                return
            tail = None
            self.sleep(POLL_S)

    def _added(self, node: int, *, last: bool, live: bool) -> Iterator[Batch]:
        files = [self._files.setdefault(path, _File(path, node)) for path in self._paths(node)]
        for file in files:
            yield from file.read()
            if last or file is not files[-1]:
                yield from file.close()
            elif live:
                yield from file.live()

    def _skip(self, since: datetime) -> None:
        """Pass over what was written before: whole files, and of the one that goes on what the marks allow."""
        times = LogTimes(self.folder)
        for node in self.nodes:
            first = self.began
            for path in self._paths(node):
                stat = path.stat()
                last = datetime.fromtimestamp(stat.st_mtime, UTC) + CLOCKS_DIFFER
                if since > last:
                    self._files[path] = _File(path, node, stat.st_size)
                elif since > first and not times.known:
                    raise SpecError(f"--since: got {since.isoformat()}, but lines of {path} have no times; all of them "
                                    f"were written between {first.isoformat()} and {last.isoformat()}",
                                    "take its last lines instead: launch logs --tail 100")
                elif since > first:
                    self._files[path] = _File(path, node, times.offset(path, since))
                first = last

    def _paths(self, node: int) -> list[Path]:
        """The node's files by age."""
        found = [path for path in self.folder.glob(f"node-{node}*.log") if re.match(rf"node-{node}\D", path.name)]
        return sorted(found, key=lambda path: [int(number) for number in re.findall(r"\d+", path.name)])
