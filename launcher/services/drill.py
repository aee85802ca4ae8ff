"""A drill from the job file to its report: a short job that logs its rows, one harm, and what came of it."""

import json
import random
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal

from launcher.backends.base import Backend
from launcher.backends.faults import Harm
from launcher.errors import JobFailedError, SpecError
from launcher.job.plan import Plan, beside
from launcher.job.spec import JobSpec, Mount
from launcher.kinds.train.drill_check import Expected
from launcher.kinds.train.drill_record import Record
from launcher.logs.line import LogQuery
from launcher.runs.store import Run

Kind = Literal["preempt", "kill-rank"]
KINDS: tuple[Kind, ...] = ("preempt", "kill-rank")
# As few as the harm may spend, so that the job's end proves that it spent no more.
RESTARTS: dict[Kind, int] = {"preempt": 0, "kill-rank": 1}
SHORT = ("train.optimizer.max_steps=20", "train.runtime.save_every=5", "train.runtime.log_every=1",
         "train.runtime.sample_prompts=[]")
STEPS_AFTER = 3  # at least so many are left when the harm comes


@dataclass(frozen=True)
class Moment:
    """When and where the harm comes: rank 0 has finished `step`, and `fraction` of a step's time has passed."""

    step: int
    fraction: float
    node: int
    rank: int


@dataclass(frozen=True)
class Drill:
    """One drill: what is done, when, and what the job must keep."""

    kind: Kind
    seed: int
    expected: Expected
    moment: Moment

    @property
    def where(self) -> str:
        """For people: a pre-emption takes a node, a kill one rank."""
        return f"node {self.moment.node}" if self.kind == "preempt" else f"rank {self.moment.rank}"


@dataclass(frozen=True)
class Course:
    """What happened. `recovered_s`: from the harm to the first step of the next start; None when there was none."""

    record: Record
    recovered_s: float | None


def drill_overrides(kind: Kind, job: JobSpec, mounts: Iterable[Mount], overrides: tuple[str, ...]) -> tuple[str, ...]:
    """The job as a drill: short unless the user says otherwise, in an output folder of its own beside the job's, which
    would not be empty any more. `mounts`: those of the job and its cluster."""
    if job.train is None:
        raise SpecError("got a job with `run`, allowed: a job with `train` (a drill checks steps and rows)")
    output = beside(job.train.settings.output_dir or "outputs/x", f"drill-{secrets.token_hex(4)}", mounts)
    return (*SHORT, *overrides, f"train.settings.output_dir={json.dumps(output)}", "train.runtime.log_rows=true",
            "train.runtime.resume=auto", f"restarts={RESTARTS[kind]}")


def plan_drill(kind: Kind, job: JobSpec, plan: Plan, *, seed: int | None = None, rank: int | None = None) -> Drill:
    """What will be done to the job and what it must keep. Raises SpecError when the job is too short for it."""
    if job.train is None or job.train.optimizer.max_steps is None:
        raise SpecError("train.optimizer.max_steps: got null, allowed: a number (a drill is short)")
    seed = secrets.randbelow(2**31) if seed is None else seed
    expected = Expected(world=plan.nodes * plan.processes_per_node, max_steps=job.train.optimizer.max_steps,
                        save_every=job.train.runtime.save_every, restarts=job.restarts, saves_at_stop=kind == "preempt")
    return Drill(kind, seed, expected, _draw_moment(expected, plan.processes_per_node, _dice(seed), rank))


def _dice(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311  (to be repeated, not to be secret)


def _draw_moment(expected: Expected, processes_per_node: int, dice: random.Random, rank: int | None) -> Moment:
    """After the first save, and early enough that steps are left."""
    first, last = expected.save_every + 1, expected.max_steps - STEPS_AFTER
    if last < first:
        raise SpecError(f"train.optimizer.max_steps: got {expected.max_steps} with save_every {expected.save_every}, "
                        f"allowed: at least {first + STEPS_AFTER} (a save, the harm, and steps after it)")
    if rank is not None and rank >= expected.world:
        raise SpecError(f"--rank: got {rank}, allowed: 0 to {expected.world - 1} in this job")
    step, fraction, drawn = dice.randint(first, (first + last) // 2), dice.random(), dice.randrange(expected.world)
    chosen = drawn if rank is None else rank
    return Moment(step, fraction, chosen // processes_per_node, chosen)


def conduct(drill: Drill, target: Backend, run: Run, harm: Harm, *,
            tell: Callable[[str], None] = lambda text: None) -> Course:
    """Follow the run to its end, and do the harm on the way. Raises JobFailedError when it ends before, or
    BackendError when the harm cannot be done."""
    ended = threading.Event()

    def hurt(delay_s: float) -> float:
        time.sleep(delay_s)
        began = time.monotonic()
        if drill.kind == "preempt":
            harm.preempt(run, drill.moment.node)
        else:
            harm.kill_rank(run, drill.moment.rank)
        harm.hasten(run, ended.is_set)
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
