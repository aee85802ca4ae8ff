"""One container's log as the container runtime keeps it, and queries on it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

from .clock import nano_timestamp


@dataclass(frozen=True)
class LogQuery:
    """The options of a log request; `since` in seconds since the epoch."""

    follow: bool = False
    timestamps: bool = False
    since: float | None = None
    tail: int | None = None
    limit_bytes: int | None = None


class ContainerLog:
    """Complete lines with the time their newline arrived. All stamps differ, unless the clock ticks slowly."""

    def __init__(self, tick_ns: int = 1) -> None:
        self._tick_ns = tick_ns
        self._changed = threading.Condition()
        self._lines: list[tuple[int, bytes]] = []
        self._first = 0
        self._open_streams = 0
        self._last_stamp = 0
        self._closed = False

    def pump(self, stream: IO[bytes]) -> None:
        """Read one stream to its end in a thread; a last line without newline gets one."""
        self._open_streams += 1
        threading.Thread(target=self._read, args=(stream,), daemon=True).start()

    def _read(self, stream: IO[bytes]) -> None:
        with stream:
            for line in stream:
                self.append(line if line.endswith(b"\n") else line + b"\n")
        with self._changed:
            self._open_streams -= 1
            self._changed.notify_all()

    def append(self, line: bytes) -> None:
        with self._changed:
            now = time.time_ns() // self._tick_ns * self._tick_ns
            self._last_stamp = max(now, self._last_stamp + (self._tick_ns == 1))
            self._lines.append((self._last_stamp, line))
            self._changed.notify_all()

    def close(self) -> None:
        """End every follow once the streams are drained."""
        with self._changed:
            self._changed.wait_for(lambda: not self._open_streams, timeout=5)
            self._closed = True
            self._changed.notify_all()

    @property
    def size(self) -> int:
        """Lines so far, those that were rotated away included."""
        return len(self._lines)

    def rotate(self) -> None:
        """Start a new file: later requests no longer see the lines so far."""
        with self._changed:
            self._first = len(self._lines)

    def read(self, query: LogQuery, idle_s: float = 0.05) -> Iterator[bytes]:
        """The lines asked for; while following, b"" marks an idle moment."""
        with self._changed:
            position = self._start(query)
        left = query.limit_bytes
        while left is None or left > 0:
            line = self._next(position, query, idle_s)
            if line is None:
                return
            if line:
                position += 1
                line = line if left is None else line[:left]
                left = None if left is None else left - len(line)
            yield line

    def _start(self, query: LogQuery) -> int:
        start = self._first
        if query.since is not None:
            oldest = int(query.since * 10**9)
            while start < len(self._lines) and self._lines[start][0] < oldest:
                start += 1
        if query.tail is not None:
            start = max(start, len(self._lines) - query.tail)
        return start

    def _next(self, position: int, query: LogQuery, idle_s: float) -> bytes | None:
        with self._changed:
            if position >= len(self._lines) and query.follow and not self._closed:
                self._changed.wait(idle_s)
            if position < len(self._lines):
                stamp, line = self._lines[position]
                prefix = nano_timestamp(stamp).encode() + b" " if query.timestamps else b""
                return prefix + line
            return b"" if query.follow and not self._closed else None
