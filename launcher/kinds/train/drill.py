"""What a drill does to a training: a short job that logs its rows, one fault, and what it must keep. Pure."""

import json
import random
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from launcher.errors import SpecError
from launcher.job.plan import Plan
from launcher.job.spec import JobSpec, Mount
from launcher.kinds.train.drill_check import Expected
from launcher.kinds.train.kind import beside
from trainer.config.job import TrainConfig

Kind = Literal["preempt", "kill-rank"]
KINDS: tuple[Kind, ...] = ("preempt", "kill-rank")
# As few as the fault may spend, so that the job's end proves that it spent no more.
RESTARTS: dict[Kind, int] = {"preempt": 0, "kill-rank": 1}
SHORT = ("train.optimizer.max_steps=20", "train.runtime.save_every=5", "train.runtime.log_every=1",
         "train.runtime.sample_prompts=[]")
STEPS_AFTER = 3  # at least so many are left when the fault comes


@dataclass(frozen=True)
class Moment:
    """When and where the fault comes: rank 0 has finished `step`, and `fraction` of a step's time has passed."""

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
        """For people: a preemption takes a node, a kill one rank."""
        return f"node {self.moment.node}" if self.kind == "preempt" else f"rank {self.moment.rank}"


def drill_overrides(kind: Kind, job: JobSpec, mounts: Iterable[Mount], overrides: tuple[str, ...]) -> tuple[str, ...]:
    """The job as a drill: short unless the user says otherwise, in an output folder of its own beside the job's, which
    would not be empty any more. `mounts`: those of the job and its cluster."""
    train: TrainConfig = job.section
    output = beside(train.settings.output_dir or "outputs/x", f"drill-{secrets.token_hex(4)}", mounts)
    return (*SHORT, *overrides, f"train.settings.output_dir={json.dumps(output)}", "train.runtime.log_rows=true",
            "train.runtime.resume=auto", f"restarts={RESTARTS[kind]}")


def plan_drill(kind: Kind, job: JobSpec, plan: Plan, *, seed: int | None = None, rank: int | None = None) -> Drill:
    """What will be done to the job and what it must keep. Raises SpecError when the job is too short for it."""
    train: TrainConfig = job.section
    if train.optimizer.max_steps is None:
        raise SpecError("train.optimizer.max_steps: must be a number for a drill, which is short; it is null")
    seed = secrets.randbelow(2**31) if seed is None else seed
    expected = Expected(world=plan.nodes * plan.processes_per_node, max_steps=train.optimizer.max_steps,
                        save_every=train.runtime.save_every, restarts=job.restarts, saves_at_stop=kind == "preempt")
    return Drill(kind, seed, expected, _draw_moment(expected, plan.processes_per_node, _dice(seed), rank))


def _dice(seed: int) -> random.Random:
    return random.Random(seed)  # noqa: S311  (to be repeated, not to be secret)


def _draw_moment(expected: Expected, processes_per_node: int, dice: random.Random, rank: int | None) -> Moment:
    """After the first save, and early enough that steps are left."""
    first, last = expected.save_every + 1, expected.max_steps - STEPS_AFTER
    if last < first:
        raise SpecError(f"train.optimizer.max_steps: must be at least {first + STEPS_AFTER} with save_every "
                        f"{expected.save_every} (a save, the fault, and steps after it), not {expected.max_steps}")
    if rank is not None and rank >= expected.world:
        raise SpecError(f"--rank: must be 0 to {expected.world - 1} in this job, not {rank}")
    step, fraction, drawn = dice.randint(first, (first + last) // 2), dice.random(), dice.randrange(expected.world)
    chosen = drawn if rank is None else rank
    return Moment(step, fraction, chosen // processes_per_node, chosen)
