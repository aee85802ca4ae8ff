"""One process at a time, on a file system that several machines share, however long the work takes.

The lock is a file that names its holder, who touches it every few seconds. Whether the holder is alive is judged by its
process id on the same machine, and elsewhere by whether the file still changes, by the clock of the one who looks, so
that clocks may differ. (A barrier of the process group would give up after its time-out: axolotl#2684,
LLaMA-Factory#2424.)
"""

import datetime
import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from typing import Self

from trainer.errors import TrainError

BEAT_S = 2.0
DEAD_S = 60.0
POLL_S = 0.2
BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class Sign(Enum):
    """What a lock file shows of its holder. SILENT: nothing yet."""

    SILENT = "silent"
    ALIVE = "alive"
    DEAD = "dead"


@dataclass(frozen=True)
class Holder:
    """A process that holds a lock. `machine`: a boot of a machine and a name space of process ids in it; `born`: when
    that machine started the process, in its own ticks, so that another one with the same id is not taken for it.
    `run`, `start`: the run that it belongs to, and which submission of it, where there is one."""

    mark: str
    host: str
    pid: int
    machine: str
    born: str
    since: str
    run: str | None = None
    start: str | None = None

    @classmethod
    def me(cls, run: str | None = None, start: str | None = None) -> Self:
        """This process, from now on."""
        since = datetime.datetime.now(datetime.UTC).isoformat(sep=" ", timespec="seconds")
        pid = os.getpid()
        return cls(uuid.uuid4().hex, socket.gethostname(), pid, _machine(), _born(pid), since, run, start)

    def __str__(self) -> str:
        return f"process {self.pid} on host {self.host}, since {self.since}"

    def is_alive(self) -> bool | None:
        """Whether the process is there; None when it is on another machine or in another container."""
        if not self.machine or self.machine != _machine():
            return None
        return bool(self.born) and _born(self.pid) == self.born

    def same_run(self, other: "Holder") -> bool:
        """Whether both belong to one submission of one run: the scheduler has started it again."""
        return self.run is not None and (self.run, self.start) == (other.run, other.start)


class LockLostError(TrainError):
    """Somebody has removed the lock of this process, or has taken it over."""


class Lock:
    """The lock file at `path`, for the process `me`. `dead_s`: how long a holder elsewhere may be silent."""

    def __init__(self, path: Path, me: Holder, dead_s: float = DEAD_S) -> None:
        self.path, self.me, self.dead_s = path, me, dead_s
        self._left = threading.Event()
        self._seen = 0.0  # when the file was last known to be ours
        self._stuck: float | None = None

    @property
    def is_held(self) -> bool:
        """Whether this process has it, as far as it knows."""
        return self._seen > 0 and not self._left.is_set()

    def acquire(self) -> Iterator[tuple[Holder, Sign]]:
        """Take the lock. As long as somebody else holds it, give what he shows, again and again: who does not want to
        wait stops to listen. From a holder who is DEAD it is taken over. Raises OSError."""
        while not self._take():
            for holder, sign in self._signs():
                yield holder, sign
                if sign is Sign.DEAD and self._take_over(holder):
                    return

    def holder(self) -> Holder | None:
        """Who holds the lock; None when nobody does."""
        try:
            values = json.loads(self.path.read_text(encoding="utf-8"))
            return Holder(**values)
        except FileNotFoundError:
            return None
        except (ValueError, TypeError):  # written by another version: judged by its heartbeat alone
            return Holder("unknown", "unknown", 0, "", "", "an unknown time")

    def require(self) -> None:
        """Raise LockLostError unless this process still holds the lock. Reads the file only when the heartbeat is late:
        this process may have been suspended."""
        if time.monotonic() - self._seen > 2 * BEAT_S:
            self.verify()
        elif self._left.is_set():
            raise self._lost(self.holder())

    def verify(self) -> None:
        """As `require`, from the file as it is now. A file system that does not answer says nothing about the lock."""
        try:
            holder = self.holder()
        except OSError:
            return
        if holder != self.me or self._left.is_set():
            self._left.set()
            raise self._lost(holder)
        self._seen = time.monotonic()

    def release(self) -> None:
        """Give it back, if this process still holds it."""
        self._left.set()
        with suppress(OSError):
            if self._seen and self.holder() == self.me:
                self.path.unlink()

    def _take(self) -> bool:
        with self._written() as mine:
            try:
                os.link(mine, self.path)  # fails when it is there, on NFS too; the holder is in it from the start
            except FileExistsError:
                return False
        self._hold()
        return True

    def _take_over(self, dead: Holder) -> bool:
        """Of all who try, the one wins who makes a file named after the dead holder; the lock file is replaced, and
        never missing meanwhile."""
        right = self.path.with_name(f"{self.path.name}.{dead.mark}")
        with self._written() as mine:
            try:
                os.link(mine, right)
            except FileExistsError:
                self._remove_if_stuck(right)
                return False
            try:
                if self.holder() != dead:
                    return False
                mine.replace(self.path)
            finally:
                right.unlink(missing_ok=True)
        self._hold()
        return True

    def _signs(self) -> Iterator[tuple[Holder, Sign]]:
        """What the lock shows, until nobody holds it."""
        seen, since, alive = self._state(), time.monotonic(), False
        while seen and (holder := self.holder()):
            here = holder.is_alive()
            silent = time.monotonic() - since > self.dead_s
            dead = silent if here is None else not here
            yield holder, Sign.DEAD if dead else Sign.ALIVE if here or alive else Sign.SILENT
            time.sleep(POLL_S)
            if (state := self._state()) != seen:
                seen, since, alive = state, time.monotonic(), True

    @contextmanager
    def _written(self) -> Iterator[Path]:
        mine = self.path.with_name(f"{self.path.name}.{self.me.mark}.part")
        mine.write_text(json.dumps(asdict(self.me)) + "\n", encoding="utf-8")
        try:
            yield mine
        finally:
            mine.unlink(missing_ok=True)

    def _hold(self) -> None:
        self._seen = time.monotonic()
        threading.Thread(target=self._beat, daemon=True).start()

    def _beat(self) -> None:
        while not self._left.wait(BEAT_S):
            with suppress(OSError, LockLostError):
                self.verify()
                os.utime(self.path)

    def _lost(self, holder: Holder | None) -> LockLostError:
        why = "was removed" if holder in (None, self.me) else f"was taken over by {holder}"
        return LockLostError(f"{self.path}: the lock of this run {why}; nothing more is written")

    def _remove_if_stuck(self, right: Path) -> None:
        """Whoever was to take over may have been killed in the midst of it."""
        self._stuck = self._stuck or time.monotonic()
        if time.monotonic() - self._stuck > self.dead_s:
            self._stuck = None
            right.unlink(missing_ok=True)

    def _state(self) -> tuple[int, int] | None:
        with suppress(FileNotFoundError):
            found = self.path.stat()
            return found.st_ino, found.st_mtime_ns
        return None


def submission(environ: Mapping[str, str]) -> tuple[str | None, str | None]:
    """The run that a job's environment names, and what tells two submissions under that id apart: machines that share a
    file system may not share the folder of runs. On Kubernetes an id is taken once in a namespace."""
    scheduler = "kubernetes" if "KUBERNETES_SERVICE_HOST" in environ else socket.gethostname()
    return environ.get("LAUNCH_RUN_ID"), environ.get("SLURM_JOB_ID", scheduler)


def _machine() -> str:
    """This boot of this machine, and the name space of process ids in it; empty where that cannot be known."""
    try:
        return f"{BOOT_ID.read_text(encoding='ascii').strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return ""


def _born(pid: int) -> str:
    """When a process was started, in ticks since the boot (proc(5): field 22 of stat); empty for one that is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(") ")[2].split()
    except OSError:
        return ""
    return "" if fields[0] in "ZX" else fields[19]
