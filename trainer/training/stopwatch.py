"""How long training takes, without what stands beside it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


class Stopwatch:
    """Seconds of training. It stands still in `paused`: saves, answers and validation are no training. `settle` waits
    for what a GPU still has to do, so that its time is counted where it belongs."""

    def __init__(self, clock: Callable[[], float] = time.monotonic, settle: Callable[[], None] = lambda: None) -> None:
        self._clock, self._settle = clock, settle
        self._began = clock()
        self.paused_s = 0.0
        self.waited_s = 0.0

    @property
    def trained_s(self) -> float:
        """Seconds in which it ran; `waited_s` of them went by until a batch was there."""
        return self._clock() - self._began - self.paused_s

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Around what is no training."""
        self._settle()
        since = self._clock()
        try:
            yield
        finally:
            self._settle()
            self.paused_s += self._clock() - since

    def batches(self, source: Iterator[Any]) -> Iterator[Any]:
        """What `source` has, with the time that it takes to give it written down."""
        while True:
            since = self._clock()
            try:
                batch = next(source)
            except StopIteration:
                return
            finally:
                self.waited_s += self._clock() - since
            yield batch
