"""Whether the log of a job with an injected fault proves that training resumed where it stopped. Pure.

The lineage is the training that the result comes from: of every start the steps up to the checkpoint that the next
start went on from, and all steps of the last start.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

from launcher.kinds.train.drill_record import Attempt, Record, Step, spans

SHOWN = 3  # findings in a check's text; the rest is counted


@dataclass(frozen=True)
class Expected:
    """What the job was told to do. `saves_at_stop`: the fault leaves time for a checkpoint, so no step may be lost."""

    world: int
    max_steps: int
    save_every: int
    restarts: int
    saves_at_stop: bool


@dataclass(frozen=True)
class Check:
    """One promise, and what was seen of it."""

    name: str
    seen: str
    ok: bool


def check_record(record: Record, expected: Expected, *, state: str) -> list[Check]:
    """Every promise in the order of the report. `state` is how the back end says that the run ended."""
    return [
        _ended(record, expected, state),
        _resumed(record, expected),
        _check("steps", _steps_wrong(record, expected), _steps_seen(record, expected)),
        _check("ranks", _ranks_wrong(record, expected), f"{expected.world} ranks tell of the same steps"),
        _check("same rows again", _again_wrong(record), _again_seen(record)),
        _check("rows once", _twice_wrong(record, expected), _rows_seen(record)),
        _budget(record, expected, state),
    ]


def steps_lost(record: Record) -> int:
    """Finished steps that had to be trained again, over all starts."""
    return sum(max(0, before.last - after.start) for before, after in pairwise(record.attempts))


def _check(name: str, wrong: Iterator[str], seen: str) -> Check:
    found = list(wrong)
    more = [f"and {len(found) - SHOWN} more"] if len(found) > SHOWN else []
    return Check(name, "; ".join([*found[:SHOWN], *more]) or seen, not found)


def _ended(record: Record, expected: Expected, state: str) -> Check:
    return Check("ended", f"{state} after step {record.latest} of {expected.max_steps}",
                 state == "succeeded" and record.latest == expected.max_steps)


def _resumed(record: Record, expected: Expected) -> Check:
    """Every later start goes on from the last step that must have been saved, or from a later one that was trained."""
    if len(record.attempts) < 2:
        return Check("resumed", "the job was never started again", ok=False)
    seen, ok = [], True
    for before, after in pairwise(record.attempts):
        saved = before.last if expected.saves_at_stop else _surely_saved(before, expected.save_every)
        ok = ok and saved <= after.start <= before.last
        place = f"step {after.start}" if after.start else "nothing"
        seen.append(f"stopped after step {before.last}, saved at step {saved}, went on from {place}")
    return Check("resumed", "; ".join(seen), ok)


def _surely_saved(attempt: Attempt, save_every: int) -> int:
    """The last save that the log calls complete; without the log's word the one before the last: a save begins when the
    one before is complete."""
    begun = (attempt.last - 1) // save_every
    return max(attempt.start, attempt.saved, (begun - 1) * save_every)


def _steps_wrong(record: Record, expected: Expected) -> Iterator[str]:
    """The lineage has every step once, and within a start the steps follow each other."""
    for attempt in record.attempts:
        for previous, step in pairwise([Step(attempt.start, ()), *attempt.steps]):
            if step.number != previous.number + 1:
                yield f"step {step.number} came after step {previous.number}"
    counts = Counter(step.number for step in lineage(record))
    wanted = set(range(1, expected.max_steps + 1))
    if missing := wanted - set(counts):
        yield f"never trained: step {spans(list(missing))}"
    if twice := [number for number, count in counts.items() if count > 1]:
        yield f"trained twice: step {spans(twice)}"


def lineage(record: Record) -> list[Step]:
    """Rank 0's steps that the result comes from, in order."""
    ends = [attempt.start for attempt in record.attempts[1:]] + [None]
    return [step for attempt, end in zip(record.attempts, ends, strict=True)
            for step in attempt.steps if end is None or step.number <= end]


def _steps_seen(record: Record, expected: Expected) -> str:
    lost = steps_lost(record)
    return f"1-{expected.max_steps}, each once" + (f"; {lost} after the save trained again" if lost else "")


def _ranks_wrong(record: Record, expected: Expected) -> Iterator[str]:
    """Every rank goes through rank 0's steps. Only the last step before a stop may be told by some ranks alone."""
    starts = {attempt.start + 1 for attempt in record.attempts}
    tails = {attempt.last + after for attempt in record.attempts[:-1] for after in (0, 1)}
    mine = Counter(step.number for step in record.ranks.get(0, []))
    for rank in range(expected.world):
        steps = record.ranks.get(rank, [])
        theirs = Counter(step.number for step in steps)
        for previous, step in pairwise(steps):
            if step.number != previous.number + 1 and step.number not in starts:
                yield f"rank {rank}: step {step.number} came after step {previous.number}"
        if missing := [number for number in range(1, expected.max_steps + 1) if not theirs[number]]:
            yield f"rank {rank}: no step {spans(missing)}"
        if other := [number for number in set(mine) & set(theirs) - tails if mine[number] != theirs[number]]:
            yield f"rank {rank}: step {spans(other)} not as often as on rank 0"


def _again_wrong(record: Record) -> Iterator[str]:
    """A step that is trained again has the rows of the first time."""
    for rank, steps in sorted(record.ranks.items()):
        first: dict[int, tuple[int, ...]] = {}
        for step in steps:
            if step.rows != first.setdefault(step.number, step.rows):
                yield f"rank {rank}: step {step.number} first had rows {_shown(first[step.number])}, " \
                      f"then {_shown(step.rows)}"


def _again_seen(record: Record) -> str:
    again = [step.number for steps in record.ranks.values() for step in steps[1:]
             if sum(other.number == step.number for other in steps) > 1]
    return f"step {spans(again)} trained again on the same rows" if again else "no step was trained again"


def _twice_wrong(record: Record, expected: Expected) -> Iterator[str]:
    """Within an epoch no row comes twice, over all ranks and steps of the lineage.

    Epochs follow each other without a gap, within a step too: after n rows every row has come n // rows times, or once
    more.
    """
    if record.num_rows is None:
        yield "the log does not say how many rows there are"
        return
    seen: Counter[int] = Counter()
    for number in range(1, expected.max_steps + 1):
        seen.update(row for steps in record.ranks.values() for row in _rows_of(steps, number))
        most = seen.total() // record.num_rows + 1
        if twice := [row for row, count in seen.items() if count > most]:
            yield f"step {number}: row {spans(twice)} for the second time in this epoch"


def _rows_of(steps: list[Step], number: int) -> tuple[int, ...]:
    """The rows of a step in the lineage: the last time it was trained."""
    return next((step.rows for step in reversed(steps) if step.number == number), ())


def _rows_seen(record: Record) -> str:
    used = {row for steps in record.ranks.values() for step in steps for row in step.rows}
    return f"{len(used)} of {record.num_rows} rows, none twice in an epoch"


def _budget(record: Record, expected: Expected, state: str) -> Check:
    """The job had exactly the restarts that the fault may spend, so that its end tells whether more were."""
    name = "restarts spent"
    if state != "succeeded":
        return Check(name, f"the job did not survive on {expected.restarts}", ok=False)
    if not expected.restarts:
        return Check(name, "0: it had none, and was started again", len(record.attempts) > 1)
    return Check(name, f"at most {expected.restarts}, all it had", ok=True)


def _shown(rows: tuple[int, ...]) -> str:
    return " ".join(map(str, rows[:8])) + (" ..." if len(rows) > 8 else "")
