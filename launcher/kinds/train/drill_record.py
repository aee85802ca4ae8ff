"""What a training job's log says about its steps: which rows every rank trained on, and where each start went on.
Pure.

The lines are the trainer's, with `train.runtime.log_rows`: `rows STEP  rank R  ID ID ...` from every rank at the end of
a step and before the save at that step; `saved CHECKPOINT (step K)` from rank 0 once that save is complete, some steps
later; `resuming from CHECKPOINT (step K)` from rank 0; `data: ...` from rank 0.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

_ROWS = re.compile(r"(?:\[rank \d+\] )?rows (\d+)  rank (\d+)((?: +\d+)+)")
_RESUMED = re.compile(r"resuming from .*\(step (\d+)\)")
_SAVED = re.compile(r"saved .*\(step (\d+)\)")
_PACKED = re.compile(r"data: packed into (\d+) rows\b")
_KEPT = re.compile(r"data: \d+ rows read, (\d+) conversations kept\b")


@dataclass(frozen=True)
class Step:
    """One optimizer step of one rank, and the numbers of the rows it was made of."""

    number: int
    rows: tuple[int, ...]


@dataclass
class Attempt:
    """One start of the job, as rank 0 tells it: it went on after step `start`, finished `steps`, and last `saved` that
    one."""

    start: int
    saved: int = 0
    steps: list[Step] = field(default_factory=list)

    @property
    def last(self) -> int:
        """The last finished step, or the one it went on after."""
        return self.steps[-1].number if self.steps else self.start


@dataclass
class Record:
    """A job's log so far. `ranks`: every step of every rank in the order of its log. `num_rows`: the training set."""

    attempts: list[Attempt] = field(default_factory=list)
    ranks: dict[int, list[Step]] = field(default_factory=dict)
    num_rows: int | None = None

    @property
    def latest(self) -> int:
        """The step that rank 0 finished last; 0 before the first."""
        return self.ranks[0][-1].number if self.ranks.get(0) else 0

    @property
    def resumed(self) -> bool:
        """Whether a later start of the job has finished a step."""
        return len(self.attempts) > 1 and bool(self.attempts[-1].steps)

    def add(self, text: str) -> None:
        """Take in one line; all but the trainer's own lines are passed over."""
        if match := _ROWS.fullmatch(text):
            self._add_step(int(match[2]), Step(int(match[1]), tuple(map(int, match[3].split()))))
        elif match := _RESUMED.match(text):
            self.attempts.append(Attempt(int(match[1])))
        elif (match := _SAVED.match(text)) and self.attempts:
            self.attempts[-1].saved = int(match[1])
        elif match := _PACKED.match(text) or _KEPT.match(text):
            self.num_rows = int(match[1])

    def _add_step(self, rank: int, step: Step) -> None:
        self.ranks.setdefault(rank, []).append(step)
        if rank == 0:
            if not self.attempts or step.number <= self.attempts[-1].last:  # a start that resumed from nothing
                self.attempts.append(Attempt(step.number - 1))
            self.attempts[-1].steps.append(step)


def read_record(lines: Iterable[str]) -> Record:
    """The record of a whole log; lines of one node must be in order."""
    record = Record()
    for line in lines:
        record.add(line)
    return record


def spans(numbers: Sequence[int]) -> str:
    """`1-4, 7` for people."""
    parts: list[list[int]] = []
    for number in sorted(set(numbers)):
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ", ".join("-".join(map(str, dict.fromkeys(part))) for part in parts)
