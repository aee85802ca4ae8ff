"""What is missing of a log, found in the copy that the job has kept of it. Pure.

The stamps of the two differ by milliseconds, so the place is found by the lines around it, which must fit exactly and
in one place only.
"""

from collections.abc import Sequence
from datetime import UTC, datetime

from launcher.backends.kubernetes.logs.stamped import RECENT, STAMP_LENGTH, is_stamped
from launcher.logs.line import Gap

# The copy is given from 5 s before the gap to 5 s after it (trainer/node/archive.py): lines this near are among them.
NEAR_NS = 2 * 10**9
FAR_NS = 5 * 10**9
END = b"end"  # the copy's last line, when the job has ended


class UnfilledError(Exception):
    """The gap stays, and why."""


def missing_lines(copy: Sequence[bytes], before: Sequence[bytes], after: Sequence[bytes], gap: Gap) -> list[bytes]:
    """The lines of `copy` between those `before` the gap and those `after` it, their stamps moved into the gap.

    All are stamped. `before` is empty for a log of which nothing was read, `after` for one of which nothing comes any
    more: then the copy is taken from its beginning, or to its end. Raises UnfilledError.
    """
    lines = [line for line in copy if is_stamped(line)]
    start = _after(lines, before, gap) if before else 0
    if after:
        stop = start + _before(lines[start:], after, gap)
    elif copy and copy[-1] == END:
        stop = len(lines)
    else:
        raise UnfilledError("the copy of the log ends early, too")
    return _within(lines[start:stop], gap)


def _after(lines: list[bytes], before: Sequence[bytes], gap: Gap) -> int:
    """Where the lines before the gap end in the copy."""
    first, last = _ns(gap.after) - NEAR_NS, _ns(gap.after) + FAR_NS
    wanted = [_text(line) for line in before if _ns_of(line) >= first]
    texts = [_text(line) for line in lines if _ns_of(line) <= last]
    return _only([at + len(wanted) for at in range(len(texts) - len(wanted) + 1)
                  if texts[at] == wanted[0] and texts[at:at + len(wanted)] == wanted], "before")


def _before(lines: list[bytes], after: Sequence[bytes], gap: Gap) -> int:
    """Where the lines after the gap begin in the copy, which may not have all of them yet."""
    moment = _ns(gap.before or gap.after)
    wanted = [_text(line) for line in after[:RECENT] if _ns_of(line) <= moment + NEAR_NS]
    texts = [_text(line) for line in lines]
    return _only([at for at, line in enumerate(lines) if texts[at] == wanted[0] and _ns_of(line) >= moment - FAR_NS
                  and texts[at:at + len(wanted)] == wanted[:len(texts) - at]], "after")


def _only(places: list[int], which: str) -> int:
    if len(places) != 1:
        raise UnfilledError(f"the lines {which} it are {'in several places' if places else 'not'} in the copy of the "
                            "log")
    return places[0]


def _within(lines: list[bytes], gap: Gap) -> list[bytes]:
    """Strictly between the two times: what was read before is told by its stamps from what comes."""
    low = _ns(gap.after) + 1
    high = max(low, _ns(gap.before) - 1) if gap.before else None
    stamps = [max(low, _ns_of(line)) for line in lines]
    stamps = stamps if high is None else [min(stamp, high) for stamp in stamps]
    return [_stamp(stamp) + line[STAMP_LENGTH:] for stamp, line in zip(stamps, lines, strict=True)]


def _text(line: bytes) -> bytes:
    """Container runtimes take a carriage return for a part of the line's end."""
    return line[STAMP_LENGTH + 1:].rstrip(b"\r")


def _ns_of(line: bytes) -> int:
    return _ns(line[:STAMP_LENGTH].decode())


def _ns(stamp: str) -> int:
    seconds = datetime.fromisoformat(f"{stamp[:19]}+00:00").timestamp()
    return int(seconds) * 10**9 + int(stamp[20:-1] or 0)


def _stamp(moment: int) -> bytes:
    seconds, nanoseconds = divmod(moment, 10**9)
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}.{nanoseconds:09}Z".encode()
