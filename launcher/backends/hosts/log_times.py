"""When the log files of a run had which size, as the job's script notes it in `logs/times`."""

import re
from bisect import bisect_right
from datetime import datetime
from pathlib import Path
from typing import BinaryIO

BLOCK = 2**20
_MARK = re.compile(r"(\d+) (\d+) (\S+)\n")


class LogTimes:
    """The marks `EPOCH SIZE FILE`: what lies before SIZE was written by then. One in 10 s while a file grows."""

    def __init__(self, folder: Path) -> None:
        self._marks: dict[str, list[tuple[int, int]]] = {}
        try:
            with (folder / "times").open(encoding="ascii", errors="replace") as file:
                for match in filter(None, map(_MARK.fullmatch, file)):
                    self._marks.setdefault(match[3], []).append((int(match[1]), int(match[2])))
        except FileNotFoundError:
            self.known = False
        else:
            self.known = True

    def offset(self, path: Path, since: datetime) -> int:
        """Where to begin to have every line that was written since: up to 10 s before, at the start of a line."""
        marks = sorted(self._marks.get(path.name, []))
        before = marks[:bisect_right(marks, since.timestamp(), key=lambda mark: mark[0])]
        with path.open("rb") as file:
            end = file.seek(0, 2)
            return whole_lines(file, max((size for _, size in before if size <= end), default=0))


def whole_lines(file: BinaryIO, end: int) -> int:
    """The size of the whole lines among the first `end` bytes."""
    while end:
        start = max(0, end - BLOCK)
        file.seek(start)
        found = file.read(end - start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
        end = start
    return 0
