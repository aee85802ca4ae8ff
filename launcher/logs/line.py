"""What every source of logs yields."""

from dataclasses import dataclass


@dataclass(frozen=True)
class LogLine:
    """One line of one node, without its line end. `stamp` is RFC 3339 where the back end has one."""

    node: int
    text: str
    stamp: str | None = None
