"""Steps whose loss or gradient is not a number: one is passed over, several in a row end the run and name the data, and
so does a run without one good step."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.data.rows import Row
from trainer.errors import DivergedError
from trainer.node.files import replace_text
from trainer.node.ranks import Place
from trainer.training.metrics import StepStatistics

FILE = "diverged.json"


@dataclass(frozen=True)
class BadStep:
    """One bad step as this rank saw it: its loss, and the rows it trained on."""

    step: int
    loss: float
    rows: list[int]


class Divergence:
    """The bad steps in a row up to now, at most `limit` of them. `has_good`: whether the weights have changed since the
    run began, in this start or in one before."""

    def __init__(self, place: Place, rows: Sequence[Row], output: Path, limit: int) -> None:
        self.place, self.rows, self.output, self.limit = place, rows, output, limit
        self.streak: list[BadStep] = []
        self.has_good = False

    @property
    def is_good(self) -> bool:
        """Whether the last step was good."""
        return not self.streak

    def warning(self) -> str | None:
        """What is to be said of a run that ends with bad steps: its result is that of the last good one."""
        if self.is_good:
            return None
        return (
            f"warning: the loss or gradient of the last {len(self.streak)} step(s) is not a number: they changed "
            f"nothing, and the result is that of step {self.streak[0].step - 1}"
        )

    def judge(self, step: int, statistics: StepStatistics, *, bad: bool, last: bool) -> None:
        """Take note of a step that all ranks call good or bad; the run's `last` one may not be the first good one.
        Raises DivergedError, on every rank at once."""
        if not bad:
            self.streak, self.has_good = [], True
            return
        self.streak.append(BadStep(step, statistics.loss, statistics.rows))
        in_vain = last and not self.has_good
        if len(self.streak) < self.limit and not in_vain:
            return
        steps = [{"step": one.step, "ranks": self._on_all_ranks(one)} for one in self.streak]
        path = self.output / FILE
        if self.place.is_main:
            replace_text(path, json.dumps({"steps": steps}, indent=1, ensure_ascii=False) + "\n")
        often = "in every step of this run" if in_vain else f"{self.limit} steps in a row"
        raise DivergedError(
            f"step {step}: loss or gradient is not a number, {often}; "
            f"the samples of these steps are listed in {path}",
            "lower optimizer.lr, or look at these samples",
        )

    def _on_all_ranks(self, one: BadStep) -> list[dict[str, Any]]:
        mine = torch.tensor([one.loss, *one.rows], dtype=torch.float64, device=self.place.device)
        return [
            {"rank": rank, "loss": str(values[0]), "rows": [self._named(int(number)) for number in values[1:]]}
            for rank, values in enumerate(gathered(mine))
        ]

    def _named(self, number: int) -> dict[str, Any]:
        return {"row": number, "samples": self.rows[number].origins}


def gathered(mine: torch.Tensor) -> list[list[float]]:
    """The values of every rank; all have as many."""
    if not torch.distributed.is_initialized():
        return [mine.tolist()]
    parts = [torch.empty_like(mine) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, mine)
    return [part.tolist() for part in parts]
