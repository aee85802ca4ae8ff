"""Ctrl-C while a model writes: the first ends the answer behind its next token, the second at once."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class Interrupt:
    """Whether the answer that is being written was interrupted."""

    def __init__(self) -> None:
        self.requested = False

    @contextmanager
    def noted(self) -> Iterator[None]:
        """While an answer is written. Raises KeyboardInterrupt at the second signal."""
        self.requested = False
        before = signal.signal(signal.SIGINT, self._note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    def _note(self, *_: Any) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
