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
class Course:
    """What happened. `recovered_s`: from the harm to the first step of the next start; None when there was none."""

    record: Record
    recovered_s: float | None


def conduct(drill: Drill, target: Backend, run: Run, faults: InjectsFaults, *,
            tell: Callable[[str], None] = lambda text: None) -> Course:
    """Follow the run to its end, and do the harm on the way. Raises JobFailedError when it ends before, or
    BackendError when the harm cannot be done."""
    ended = threading.Event()

    def hurt(delay_s: float) -> float:
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
            return _Follower(drill.moment, lambda delay_s: pool.submit(hurt, delay_s), tell).follow(target, run)
        finally:
            ended.set()


class _Follower:
    """Reads the log, and starts the harm at its moment."""

    def __init__(self, moment: Moment, start: Callable[[float], "Future[float]"], tell: Callable[[str], None]) -> None:
        self.moment = moment
        self.start = start
        self.tell = tell
        self.record = Record()
        self.harmed: Future[float] | None = None
        self.went_on: float | None = None
        self._step, self._step_at = 0, time.monotonic()

    def follow(self, target: Backend, run: Run) -> Course:
        """To the end of the run."""
        for batch in target.logs(run, LogQuery(follow=True)):
            for line in batch:
                self.record.add(line.text)
                self._look()
            if self.harmed and self.harmed.done():
                self.harmed.result()
        if self.harmed is None:
            status = target.status(run)
            raise JobFailedError(f"{run.run_id} {status.state} after step {self.record.latest}, before the harm at "
                                 f"step {self.moment.step}: {status.reason or 'no reason given'}",
                                 f"read what it said: launch logs {run.run_id}")
        began = self.harmed.result()
        return Course(self.record, self.went_on - began if self.went_on else None)

    def _look(self) -> None:
        """After each line: is it the moment, or the first step after it?"""
        if self.record.latest == self._step:
            return
        now = time.monotonic()
        step_s, self._step, self._step_at = now - self._step_at, self.record.latest, now
        if self.harmed is None and self._step >= self.moment.step:
            self.tell(f"step {self._step}: the harm comes now")
            self.harmed = self.start(self.moment.fraction * step_s)
        elif self.went_on is None and self.record.resumed:
            self.went_on = now
            self.tell(f"training went on at step {self._step}")
