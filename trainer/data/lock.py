"""One process at a time, on a file system that several machines share, however long the work takes.

The lock is a file that its holder touches every few seconds. A waiter judges by its own clock whether the file still
changes, so that clocks may differ; a lock that does not change any more belonged to a process that was killed.
(A barrier of the process group would give up after its time-out: axolotl#2684, LLaMA-Factory#2424.)
"""

import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

BEAT_S = 2.0
DEAD_S = 60.0
POLL_S = 0.2


class Lock:
    """Held inside `with`. `done()` true while waiting: nothing is left to do, and `held` is False. `tell` hears who is
    waited for."""

    def __init__(
        self, path: Path, done: Callable[[], bool], tell: Callable[[str], None], dead_s: float = DEAD_S
    ) -> None:
        self.path, self.done, self.tell, self.dead_s = path, done, tell, dead_s
        self.held = False
        self._mark = f"{socket.gethostname()} process {os.getpid()} {uuid.uuid4().hex}"
        self._left = threading.Event()

    def __enter__(self) -> Self:
        told = ""
        while not self.done():
            if self._take():
                self.held = True
                threading.Thread(target=self._beat, daemon=True).start()
                break
            told = self._wait(told)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._left.set()
        if self.held and self._holder() == self._mark:
            self.path.unlink(missing_ok=True)

    def _take(self) -> bool:
        """Create the file, whole: with its holder's name in it from the start."""
        mine = self.path.with_name(f"{self.path.name}.{self._mark.rpartition(' ')[2]}")
        mine.write_text(self._mark, encoding="utf-8")
        try:
            os.link(mine, self.path)  # fails when it is there, on NFS too
            return True
        except FileExistsError:
            return False
        finally:
            mine.unlink()

    def _beat(self) -> None:
        while not self._left.wait(BEAT_S):
            with suppress(OSError):
                os.utime(self.path)

    def _wait(self, told: str) -> str:
        """Until the lock is free or dead, or nothing is left to do; returns of whom was told."""
        seen, since = self._state(), time.monotonic()
        while seen and not self.done():
            holder = self._holder().rpartition(" ")[0]
            if holder and holder != told:
                self.tell(f"data: waiting for {holder}, which is encoding this data set")
                told = holder
            time.sleep(POLL_S)
            state = self._state()
            if state != seen:
                seen, since = state, time.monotonic()
            elif time.monotonic() - since > self.dead_s:
                self._bury()
                break
        return told

    def _bury(self) -> None:
        """Remove a dead lock. Of several waiters one renames it; the others find it gone. What was renamed may already
        be the next holder's: then it goes back."""
        dead = self._holder()
        grave = self.path.with_name(f"{self.path.name}.{uuid.uuid4().hex}")
        with suppress(FileNotFoundError):
            self.path.rename(grave)
            if grave.read_text(encoding="utf-8") == dead:
                self.tell(f"data: {dead.rpartition(' ')[0]} is gone; its work is done again")
            else:
                os.link(grave, self.path)
            grave.unlink()

    def _state(self) -> tuple[int, int] | None:
        with suppress(FileNotFoundError):
            found = self.path.stat()
            return found.st_ino, found.st_mtime_ns
        return None

    def _holder(self) -> str:
        with suppress(FileNotFoundError):
            return self.path.read_text(encoding="utf-8")
        return ""
