"""A drill from its plan to its end: the run is followed, and the fault injected at its moment."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

from launcher.backends.base import Backend, InjectsFaults
from launcher.errors import JobFailedError
from launcher.kinds.train.drill import Drill, Moment
from launcher.kinds.train.drill_record import Record
from launcher.logs.line import LogQuery
from launcher.runs.record import Run


@dataclass(frozen=True)
class Timeline:
    """What happened. `recovered_s`: from the fault to the first step of the next start; None when there was none."""

    record: Record
    recovered_s: float | None


def run_drill(drill: Drill, target: Backend, run: Run, faults: InjectsFaults, *,
            tell: Callable[[str], None] = lambda text: None) -> Timeline:
    """Follow the run to its end, and inject the fault on the way. Raises JobFailedError when it ends before, or
    BackendError when the fault cannot be injected."""
    ended = threading.Event()

    def inject(delay_s: float) -> float:
        time.sleep(delay_s)
        began = time.monotonic()
        if drill.kind == "preempt":
            faults.preempt(run, drill.moment.node)
        else:
            faults.kill_rank(run, drill.moment.rank)
        faults.skip_wait(run, ended.is_set)
        return began

    with ThreadPoolExecutor(1) as pool:
        try:
            return _Follower(drill.moment, lambda delay_s: pool.submit(inject, delay_s), tell).follow(target, run)
        finally:
            ended.set()


class _Follower:
    """Reads the log, and injects the fault at its moment."""

    def __init__(self, moment: Moment, start: Callable[[float], "Future[float]"], tell: Callable[[str], None]) -> None:
        self.moment = moment
        self.start = start
        self.tell = tell
        self.record = Record()
        self.injected: Future[float] | None = None
        self.went_on: float | None = None
        self._step, self._step_at = 0, time.monotonic()

    def follow(self, target: Backend, run: Run) -> Timeline:
        """To the end of the run."""
        for batch in target.logs(run, LogQuery(follow=True)):
            for line in batch:
                self.record.add(line.text)
                self._look()
            if self.injected and self.injected.done():
                self.injected.result()
        if self.injected is None:
            status = target.status(run)
            raise JobFailedError(f"{run.run_id} {status.state} after step {self.record.latest}, before the fault at "
                                 f"step {self.moment.step}: {status.reason or 'no reason given'}",
                                 f"read what it said: launch logs {run.run_id}")
        began = self.injected.result()
        return Timeline(self.record, self.went_on - began if self.went_on else None)

    def _look(self) -> None:
        """After each line: is it the moment, or the first step after it?"""
        if self.record.latest == self._step:
            return
        now = time.monotonic()
        step_s, self._step, self._step_at = now - self._step_at, self.record.latest, now
        if self.injected is None and self._step >= self.moment.step:
            self.tell(f"step {self._step}: injecting the fault now")
            self.injected = self.start(self.moment.fraction * step_s)
        elif self.went_on is None and self.record.resumed:
            self.went_on = now
            self.tell(f"training went on at step {self._step}")
