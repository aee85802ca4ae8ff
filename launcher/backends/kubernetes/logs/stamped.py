"""Log text in which every line has its time in front, as the Kubernetes API gives it: splitting it, remembering how
far it was read, and finding what is missing. Pure.
"""

import itertools
import re
from collections import Counter, deque
from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta

from launcher.logs.line import Gap, LogLine, last_drawing

STAMP_LENGTH = 30
SECOND_LENGTH = 19
RECENT = 50
# Any other text that comes with status 200 is a message of the node, not a line of the job.
is_stamped = re.compile(rb"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{9}Z(?: |$)").match
_ROTATED = "the node rotated its log while nobody read it"


class Splitter:
    """Cuts one answer of the API into lines. Afterwards `rest` is an unfinished last line, which comes again, and
    `unstamped` a text that is no line of the job."""

    def __init__(self) -> None:
        self.rest = b""
        self.unstamped = b""

    def lines(self, pieces: Iterable[bytes]) -> Iterator[list[bytes]]:
        """The stamped lines as they come, without line ends."""
        parts: list[bytes] = []
        for piece in pieces:
            parts.append(piece)
            if b"\n" in piece:
                *whole, rest = b"".join(parts).split(b"\n")
                parts = [rest]
                yield self._stamped(whole)
        self.rest = b"".join(self._stamped([b"".join(parts)]))

    def _stamped(self, lines: list[bytes]) -> list[bytes]:
        found = [line for line in lines if is_stamped(line)]
        if len(found) < len(lines):
            self.unstamped = next((line for line in lines if line and not is_stamped(line)), self.unstamped)
        return found


def log_line(node: int, line: bytes) -> LogLine:
    """A stamped line as what users see."""
    return LogLine(node, last_drawing(line[STAMP_LENGTH + 1:]), line[:STAMP_LENGTH].decode())


class Position:
    """How far a log was read, exact although the API resumes at whole seconds only.

    What is asked for begins a second before the newest line, so that a stamp may run backwards by as much. The stamps
    from there on are counted, and as many of each are dropped when they come again: they come first, because what
    was read is always the beginning of the log. When none of them comes, the node has thrown them away, and with them
    perhaps lines that nobody has read.
    """

    def __init__(self) -> None:
        self.last: str | None = None
        self.recent: deque[bytes] = deque(maxlen=RECENT)
        self._seen: dict[bytes, Counter[bytes]] = {}  # by second
        self._due: Counter[bytes] | None = None
        self._came_again = False

    def resume(self) -> str | None:
        """The `sinceTime` to ask for, or None for the whole log; what was read is dropped from then on."""
        self._due = Counter()
        for counted in self._seen.values():
            self._due.update(counted)
        self._came_again = not self._due
        return f"{_floor(self._seen).decode()}Z" if self._seen else None

    def take(self, lines: list[bytes]) -> tuple[Gap | None, list[bytes]]:
        """Those that were not read before, which from now on they are, and what is missing before the first."""
        if self._due is not None:
            lines = self._without_repeats(self._due, lines)
        if not lines:
            return None, []
        gap = None
        if not self._came_again and self.last:
            gap = Gap(self.last, _stamp(lines[0]), _ROTATED)
        self._due, self._came_again = None, True
        self._remember(lines)
        return gap, lines

    def missing_end(self) -> Gap | None:
        """What an answer lacks that is over and had not even what was read before."""
        return None if self._came_again or not self.last else Gap(self.last, None, _ROTATED)

    def _without_repeats(self, due: Counter[bytes], lines: list[bytes]) -> list[bytes]:
        floor = _floor(self._seen)
        for index, line in enumerate(lines):
            stamp = line[:STAMP_LENGTH]
            if due[stamp] > 0:
                due[stamp] -= 1
                self._came_again = True
            elif stamp >= floor:
                return lines[index:]
        return []

    def _remember(self, lines: list[bytes]) -> None:
        self.last = _stamp(lines[-1])
        self.recent.extend(lines[-RECENT:])
        for second, group in itertools.groupby(lines, key=lambda line: line[:SECOND_LENGTH]):
            self._seen.setdefault(second, Counter()).update([line[:STAMP_LENGTH] for line in group])
        if len(self._seen) > 1:
            floor = _floor(self._seen)
            self._seen = {second: counted for second, counted in self._seen.items() if second >= floor}


def _floor(seconds: Iterable[bytes]) -> bytes:
    """The second before the newest."""
    newest = max(seconds, default=b"")
    if not newest:
        return b""
    return (datetime.fromisoformat(newest.decode()) - timedelta(seconds=1)).isoformat().encode()


def _stamp(line: bytes) -> str:
    return line[:STAMP_LENGTH].decode()
