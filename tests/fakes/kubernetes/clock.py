"""Times in the two formats the API uses."""

from __future__ import annotations

import time
from datetime import datetime


def timestamp(seconds: float | None = None) -> str:
    """A `metav1.Time`: UTC, whole seconds."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(seconds))


def nano_timestamp(nanoseconds: int) -> str:
    """The 30 characters in front of a log line."""
    seconds, rest = divmod(nanoseconds, 10**9)
    return f"{timestamp(seconds)[:-1]}.{rest:09d}Z"


def parse_timestamp(text: str) -> float:
    """Seconds since the epoch, cut to the whole second; ValueError if malformed."""
    moment = datetime.fromisoformat(text.replace("Z", "+00:00"))
    return float(int(moment.timestamp()))
