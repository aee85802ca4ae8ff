"""Faults that tests switch on: lost connections, refusals, single errors."""

from __future__ import annotations

import re
import threading
import time

from .errors import ApiError

DROP_IDLE_S = 0.1


class Faults:
    """What the server consults before each request and between log lines."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._away_until = 0.0
        self._throttled = 0
        self._failures: list[tuple[int, re.Pattern[str]]] = []
        self._denials: list[tuple[re.Pattern[str], str]] = []
        self.drops = 0
        self.drop_cleanly = False

    def drop_connections(self, *, cleanly: bool = False) -> None:
        """Cut open log streams in the middle of a line, or end them like a proxy would."""
        with self._lock:
            self.drop_cleanly = cleanly
            self.drops += 1

    def go_away(self, seconds: float) -> None:
        self._away_until = time.monotonic() + seconds
        self.drop_connections()

    def throttle(self, count: int) -> None:
        with self._lock:
            self._throttled = count

    def fail_once(self, status: int, path_regex: str) -> None:
        with self._lock:
            self._failures.append((status, re.compile(path_regex)))

    def deny(self, path_regex: str, why: str) -> None:
        self._denials.append((re.compile(path_regex), why))

    def is_away(self) -> bool:
        return time.monotonic() < self._away_until

    def check_admission(self, path: str) -> None:
        """Raise the refusal of a webhook, if one cares for this path."""
        for pattern, why in self._denials:
            if pattern.search(path):
                raise ApiError(400, f'admission webhook "policy.fake.example" denied the request: {why}')

    def check(self, path: str) -> None:
        """Raise the error that is due for this request, if any."""
        with self._lock:
            if self._throttled:
                self._throttled -= 1
                message = "Too many requests, please try again later."
                raise ApiError(429, message, headers={"Retry-After": "1"})
            for index, (status, pattern) in enumerate(self._failures):
                if pattern.search(path):
                    del self._failures[index]
                    raise ApiError(status, f"fault injected for {path}")
