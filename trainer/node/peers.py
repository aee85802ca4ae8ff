"""Signs of life between the processes of a job: a rank that is gone is named, and the others end instead of waiting.

Every rank writes a beat into the rendezvous store (torch's TCPStore at MASTER_ADDR:MASTER_PORT) every BEAT_S seconds,
by a thread with a connection of its own. Rank 0 looks at all beats and publishes its verdict; the others look at the
verdict and at rank 0, so that the store answers a number of calls that grows with the ranks, not with their square.

How long a silence may be: Python calls of one thread stop the others for as long as native code keeps the interpreter
lock. In a training step that is well below a second, so SILENCE_S is many beats of a busy machine. Loading and saving
may keep the lock as long as one large tensor takes to a slow disk; a rank says that it is busy before it begins, and is
then given BUSY_S, as long as the group's collectives may take. A round of the watcher adds at most its own usual length
to a silence: a watcher that was itself suspended accuses nobody.

What is noticed, and after how long: a rank whose connection broke, after SUSPECT_S of silence; a silent or stopped one
after SILENCE_S; one that ended with an error while others still wait for it, after SUSPECT_S; a store that does not
answer (node 0 is gone), after the same times.
"""

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from trainer.errors import PeerLostError, PreemptedError, TrainError

BEAT_S = 2
SUSPECT_S = 6
SILENCE_S = 30
BUSY_S = 600
CALL_S = 5  # one call of the store
STORE_ERRORS = (RuntimeError, OSError, ValueError)  # torch's own are RuntimeErrors
VERDICT = "launch/verdict"
LEFT = "launch/left"


@dataclass
class Seen:
    """What is known of one rank: its last beat, and for how long there was no other."""

    text: str = ""
    silence_s: float = 0

    @property
    def beat(self) -> dict[str, Any]:
        """The last beat; a rank that never came is busy coming."""
        return dict(json.loads(self.text)) if self.text else {"host": None, "busy": True, "code": None, "why": ""}


class Peers:
    """This rank among the others. `connect` opens a connection to the store; `end(code, text)` ends the process."""

    def __init__(
        self, rank: int, world: int, connect: Callable[[], Any], end: Callable[[int, str], None]
    ) -> None:
        self.rank, self.world = rank, world
        self._connect, self._end = connect, end
        self._store: Any = None
        self._count = 0
        self._busy = True
        self._suspicious = False
        self._code: int | None = None
        self._why = ""
        self._seen = {other: Seen() for other in (range(1, world) if rank == 0 else (0,))}
        self._silent_store_s = 0.0
        self._store_came = False
        self._round_s = 0.0
        self._lock = threading.Lock()
        self._left = threading.Event()
        self._verdict: TrainError | None = None
        self._found = threading.Event()

    def start(self) -> None:
        """Begin to beat and to watch."""
        threading.Thread(target=self._live, daemon=True).start()

    def ready(self) -> None:
        """Loading is over: from now on a silence is short, and every rank has said who it is."""
        self._busy = False
        self._try_beat()

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Around what may keep the interpreter's lock for long."""
        self._busy = True
        self._try_beat()
        yield
        self._busy = False
        self._try_beat()

    def leave(self, code: int, why: str) -> None:
        """The last beat: how this rank ended. After an error it waits for the others to end too, or to read that beat:
        the store may end with us."""
        self._code, self._why = code, why
        self._left.set()
        deadline = time.monotonic() + SUSPECT_S + 2 * BEAT_S
        with suppress(*STORE_ERRORS), self._lock:
            self._beat()
            left = self._store.add(LEFT, 1)
            while code and not self._verdict and left < self.world and time.monotonic() < deadline:
                time.sleep(BEAT_S / 20)
                left = self._store.add(LEFT, 0)

    def explain(self) -> TrainError | None:
        """After a collective failed: which rank is gone, or None when all are alive. Takes SUSPECT_S and a little."""
        self._suspicious = True
        self._found.wait(SUSPECT_S + 4 * BEAT_S)
        return self._verdict

    def _live(self) -> None:
        before = time.monotonic()
        while not self._left.is_set():
            now = time.monotonic()
            self._round_s, before = min(now - before, BEAT_S + CALL_S), now
            if verdict := self._round():
                if self.rank == 0:
                    time.sleep(2 * BEAT_S)  # the others read the verdict in our node's store, which ends with us
                self._verdict = verdict
                self._found.set()
                if not self._suspicious:  # else the main thread is waiting for this verdict
                    self._end(verdict.exit_code, verdict.message)
                return
            # who is gone can only be named by its host once it has been seen
            self._left.wait(BEAT_S if all(seen.text for seen in self._seen.values()) else BEAT_S / 4)

    def _round(self) -> TrainError | None:
        try:
            with self._lock:
                self._beat()
                verdict = self._look()
            self._silent_store_s, self._store_came = 0, True
            return verdict
        except STORE_ERRORS:
            self._store = None
            self._silent_store_s += self._round_s
            return self._without_store()

    def _try_beat(self) -> None:
        with suppress(*STORE_ERRORS), self._lock:
            self._beat()

    def _beat(self) -> None:
        if self._store is None:
            self._store = self._connect()
        self._count += 1
        beat = {
            "count": self._count,
            "host": socket.gethostname(),
            "busy": self._busy,
            "code": self._code,
            "why": self._why[:1000],
        }
        self._store.set(f"launch/beat/{self.rank}", json.dumps(beat))

    def _look(self) -> TrainError | None:
        if self.rank and self._store.check([VERDICT]):
            code, _, text = self._store.get(VERDICT).decode().partition(" ")
            return _error(int(code), text)
        for other, seen in self._seen.items():
            key = f"launch/beat/{other}"
            text = self._store.get(key).decode() if seen.text or self._store.check([key]) else ""
            seen.silence_s = seen.silence_s + self._round_s if text == seen.text else 0
            seen.text = text
            if verdict := self._judge(other, seen):
                self._store.set(VERDICT, f"{verdict.exit_code} {verdict.message}")
                return verdict
        return None

    def _judge(self, other: int, seen: Seen) -> TrainError | None:
        beat, silence_s = seen.beat, round(seen.silence_s)
        who = f"rank {other} on host {beat['host']}"
        if beat["code"] is not None:
            if silence_s < SUSPECT_S and not self._suspicious and not self._busy:
                return None  # it may be ending like all of us, as nobody does while we load
            return self._left_with(other, beat)
        if silence_s <= self._limit_s(busy=beat["busy"]):
            return None
        if beat["host"] is None:
            return PeerLostError(f"rank {other} of {self.world} gave no sign of life ({silence_s} s)")
        return PeerLostError(f"{who} is gone (no sign of life for {silence_s} s)")

    def _left_with(self, other: int, beat: dict[str, Any]) -> TrainError | None:
        if beat["code"] == 0:
            return None
        who = f"rank {other} on host {beat['host']}"
        return _error(beat["code"], f"{who} ended with exit code {beat['code']}: {beat['why']}")

    def _without_store(self) -> TrainError | None:
        """The store is on rank 0's node, and ends with it."""
        beat = self._seen[0].beat if self.rank else {"host": socket.gethostname(), "code": None}
        silence_s = round(self._silent_store_s)
        if beat["code"] is not None:
            return self._left_with(0, beat)
        if silence_s <= self._limit_s(busy=not self._store_came):
            return None
        host = beat["host"] or "unknown"
        return PeerLostError(f"rank 0 on host {host} is gone (its node has not answered for {silence_s} s)")

    def _limit_s(self, *, busy: bool) -> int:
        if self._suspicious:
            return SUSPECT_S
        return BUSY_S if busy else SILENCE_S


def _error(code: int, text: str) -> TrainError:
    """Why this rank ends: with a peer that was told to stop, we were too."""
    return PreemptedError(text) if code == PreemptedError.exit_code else PeerLostError(text)
