"""Where pods' logs come from, and how long to go on asking when it does not answer."""

import random
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

T = TypeVar("T")

LOOK_S = 0.5
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.2, 5.0
GIVE_UP_S, QUICK_GIVE_UP_S = 900.0, 10.0  # when following, and when only looking


@dataclass(frozen=True)
class Pod:
    """One attempt of one node. `started`: there may be a log; `ended`: nothing is added to it; `container`: whose log
    it is."""

    node: int
    name: str
    born: str
    started: bool
    ended: bool
    container: str = "trainer"


class Source(Protocol):
    """Where the logs come from. Everything may raise `Unreachable`, after which it is asked again."""

    def pods(self) -> tuple[list[Pod], bool]:
        """The pods by age, and whether the run has ended, so that no more will come."""

    def has_ended(self, pod: Pod) -> bool | None:
        """Whether the pod has ended; None when it is gone."""

    def stream(self, pod: Pod, since: str | None, *, follow: bool) -> Iterator[bytes]:
        """Its log from that second on. Raises GoneError."""

    def copied(self, pod: Pod, after: str | None, before: str | None) -> list[bytes] | None:
        """The stamped lines that the job has kept itself between two times and some seconds around them, `end` after
        the last; from the beginning or to the end without. None when it keeps none. Raises UnfilledError."""

    def close(self) -> None:
        """Leave nothing behind; the event to stop is set."""


class Unreachable(Exception):  # noqa: N818  (a state of the connection; `cause` is the error a user would see)
    """The cluster does not answer for now, or, with `pod_only`, answers that the pod's node does not. `wait_s` is how
    long it asked to be left alone."""

    def __init__(self, cause: Exception, *, pod_only: bool = False, wait_s: float = 0.0) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.pod_only = pod_only
        self.wait_s = wait_s


class GoneError(Exception):
    """This pod has no log (any more)."""


class RetryPolicy:
    """Longer and longer pauses while there is no answer; in the end the reason is raised."""

    def __init__(self, stop: threading.Event, give_up_s: float) -> None:
        self._stop = stop
        self._give_up_s = give_up_s
        self.reset()

    def reset(self) -> None:
        """There was something to read."""
        self._pause_s = FIRST_PAUSE_S
        self.answered()

    def answered(self) -> None:
        """The cluster is there, whatever else is wrong."""
        self._since: float | None = None

    def pause(self, at_least_s: float = 0.0) -> None:
        """Wait a little longer than the last time; not all readers equally long, so that they do not come at once."""
        self._stop.wait(max(at_least_s, self._pause_s * random.uniform(0.7, 1.0)))  # noqa: S311
        self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)

    def failed(self, error: Unreachable) -> None:
        """Wait, or give up."""
        if self.failing_s() > self._give_up_s or self._stop.is_set():
            raise error.cause from error
        self.pause(error.wait_s)

    def failing_s(self) -> float:
        """Since when there was no answer; asked at each failure."""
        self._since = self._since or time.monotonic()
        return time.monotonic() - self._since


def look_every_s(nodes: int) -> float:
    """How often the pods of so many nodes are looked at; all of them are one answer."""
    return max(LOOK_S, nodes / 100)


class PodCache:
    """What all readers share: the list of pods, asked for once in `pause_s` by whoever needs it first."""

    def __init__(self, source: Source, stop: threading.Event, *, pause_s: float, give_up_s: float) -> None:
        self.source = source
        self.stop = stop
        self.pause_s = pause_s
        self.give_up_s = give_up_s
        self._lock = threading.Lock()
        self._looked = float("-inf")
        self._pods: dict[int, list[Pod]] = {}
        self._over = False

    def look(self, node: int) -> tuple[list[Pod], bool]:
        """The node's pods, and whether no more will come."""
        with self._lock:
            if not self._over and time.monotonic() - self._looked >= self.pause_s:
                found, self._over = self.with_retries(self.source.pods)
                self._pods = {}
                for pod in found:
                    self._pods.setdefault(pod.node, []).append(pod)
                self._looked = time.monotonic()
            return self._pods.get(node, []), self._over

    def with_retries(self, ask: Callable[[], T]) -> T:
        """Ask until there is an answer."""
        retry = RetryPolicy(self.stop, self.give_up_s)
        while True:
            try:
                return ask()
            except Unreachable as error:
                retry.failed(error)
