"""What every source of logs yields, and how a user picks from it."""

import re
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import NamedTuple

from launcher.errors import SpecError

# In front of the lines of a node's ranks other than its first: the trainer's own mark, or torch's.
_RANK = re.compile(rb"\[rank ?(\d+)\](?: |:)")


class Gap(NamedTuple):
    """Lines between two times may be lost, and why. `before` is None when nothing came after. Times are RFC 3339."""

    after: str
    before: str | None
    why: str


class LogLine(NamedTuple):
    """One line of one node, without its line end. `raw` are the job's bytes; `stamp` is RFC 3339 where it is known.

    With `gap` it is no line of the job, but says where some are missing. `live` marks the state of a progress line
    that is not finished: the next line of the node replaces it.
    """

    node: int
    raw: bytes
    stamp: str | None = None
    gap: Gap | None = None
    live: bool = False

    @property
    def text(self) -> str:
        """The line as text; what is no UTF-8 becomes a replacement character."""
        return self.raw.decode("utf-8", errors="replace")


Batch = list[LogLine]


def last_drawing(raw: bytes) -> bytes:
    """Of a progress line redrawn with carriage returns, the last drawing."""
    return raw.rstrip(b"\r").rsplit(b"\r", 1)[-1] if b"\r" in raw else raw


def gap_line(node: int, gap: Gap) -> LogLine:
    """The line that tells of a gap."""
    where = f"between {gap.after} and {gap.before}" if gap.before else f"after {gap.after}"
    text = f"launch: lines may be missing {where}: {gap.why}"
    return LogLine(node, text.encode(), gap.before or gap.after, gap)


@dataclass(frozen=True)
class LogQuery:
    """Which lines of a run. `tail` keeps the last so many of each node, after all other filters.

    `rank` counts over all nodes; `since` has a time zone; `live` asks for unfinished progress lines, too.
    """

    follow: bool = False
    tail: int | None = None
    node: int | None = None
    rank: int | None = None
    since: datetime | None = None
    grep: re.Pattern[str] | None = None
    live: bool = False

    def nodes(self, count: int, processes_per_node: int) -> list[int]:
        """The nodes to read, of a run of `count`. Raises SpecError for a node or rank that it does not have."""
        wanted = set(range(count))
        for name, given, most, node in (
            ("--node", self.node, count - 1, self.node),
            ("--rank", self.rank, count * processes_per_node - 1, (self.rank or 0) // processes_per_node),
        ):
            if given is not None and not 0 <= given <= most:
                raise SpecError(f"{name}: must be 0 to {most} in this run, not {given}",
                                "see its nodes: launch status")
            if given is not None:
                wanted &= {node or 0}
        return sorted(wanted)

    def picks(self, processes_per_node: int) -> Callable[[LogLine], bool] | None:
        """Whether a line is wanted, by time, rank and pattern; None when every line is. A line without a time is of
        any time, and a gap of any rank and pattern."""
        if self.since is None and self.rank is None and self.grep is None:
            return None
        since = f"{self.since.astimezone(UTC):%Y-%m-%dT%H:%M:%S.%f}000Z" if self.since else ""
        ranks = {self.rank} if (self.rank or 0) % processes_per_node else {self.rank, None}

        def picks(line: LogLine) -> bool:
            if line.gap:
                return line.gap.before is None or line.gap.before >= since
            if line.stamp and line.stamp < since:
                return False
            if self.rank is not None and _rank_of(line.raw) not in ranks:
                return False
            return self.grep is None or bool(self.grep.search(line.text))

        return picks


def _rank_of(raw: bytes) -> int | None:
    """The rank that a line names in front; None for an unmarked line, which is of the node's first rank."""
    match = _RANK.match(raw)
    return int(match[1]) if match else None


def picked(batches: Iterable[Batch], picks: Callable[[LogLine], bool] | None) -> Iterator[Batch]:
    """The lines of each batch that are wanted."""
    for batch in batches:
        found = batch if picks is None else [line for line in batch if picks(line)]
        if found:
            yield found


def tailed(batches: Iterable[Batch], count: int | None) -> Iterator[Batch]:
    """The last `count` lines, once there are no more; all of them, as they come, when None."""
    if count is None:
        yield from batches
    elif kept := list(deque((line for batch in batches for line in batch if not line.live), maxlen=count)):
        yield kept
