"""Following log files `node-N.log` that grow in a run folder. Order is kept for each node; each line comes once."""

import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from launcher.logs.line import LogLine

POLL_S = 0.1


@dataclass
class _File:
    """One file being read. `rest` is a last line that has no line end yet."""

    path: Path
    node: int
    offset: int = 0
    rest: bytes = b""
    lines: deque[str] = field(default_factory=deque)

    def read(self) -> None:
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                chunk = file.read()
        except FileNotFoundError:
            return
        self.offset += len(chunk)
        *whole, self.rest = (self.rest + chunk).split(b"\n")
        self.lines.extend(_text(line) for line in whole)

    def close(self) -> None:
        if self.rest:
            self.lines.append(_text(self.rest))
            self.rest = b""


def follow_files(folder: Path, *, ended: Callable[[], bool], follow: bool, tail: int | None, node: int | None,
                 sleep: Callable[[float], None] = time.sleep) -> Iterator[LogLine]:
    """Lines of every `node-N*.log` in `folder`; new files are noticed. With `follow`, until `ended()` is true.

    `ended` is asked before the last reading, so nothing written before the end is missed.
    """
    files: dict[Path, _File] = {}
    first = True
    while True:
        last = not follow or ended()
        for path, number in _log_files(folder, node):
            files.setdefault(path, _File(path, number)).read()
        for file in files.values():
            if last:
                file.close()
            if first and tail is not None:
                file.lines = deque(file.lines, maxlen=tail) if tail else deque()
                file.lines = deque(file.lines)
            while file.lines:
                yield LogLine(file.node, file.lines.popleft())
        if last:
            return
        first = False
        sleep(POLL_S)


def _log_files(folder: Path, node: int | None) -> Iterator[tuple[Path, int]]:
    found = []
    for path in folder.glob("node-*.log"):
        match = re.match(r"node-(\d+)", path.name)
        if match and (node is None or int(match[1]) == node):
            found.append((int(match[1]), path.name, path))
    for number, _, path in sorted(found):
        yield path, number


def _text(line: bytes) -> str:
    """A line as text; of a progress line redrawn with carriage returns, the last drawing."""
    return line.decode("utf-8", errors="replace").rstrip("\r").rsplit("\r", 1)[-1]
