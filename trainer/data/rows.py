"""Which samples make up a row that the model sees: sources mixed by weight, validation kept apart, samples packed."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from trainer.config.job import Data
from trainer.data.pack import pack_lengths
from trainer.data.store import Samples, Tokens

Numbers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """What the model gets as one sequence. `number` is its place in the training set, the same after every restart;
    `samples` are stored tokens (trainer.data.store); `origins` say where each was read; `images`: where each image
    starts among the row's tokens, and its name."""

    number: int
    samples: list[Tokens]
    origins: list[str]
    images: list[tuple[int, str]] = field(default_factory=list)


class Rows(Sequence[Row]):
    """Rows of a data set. `members`: numbers of the samples, row after row; `ends`: where in it each row ends."""

    def __init__(self, samples: Samples, members: Numbers, ends: Numbers) -> None:
        self.samples, self.members, self.ends = samples, members, ends

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, number: Any) -> Any:
        start = int(self.ends[number - 1]) if number else 0
        members = self.members[start : self.ends[number]].tolist()
        return Row(
            number,
            [self.samples[index] for index in members],
            [self.samples.place(index) for index in members],
            self._images(members),
        )

    def _images(self, members: list[int]) -> list[tuple[int, str]]:
        found, before = [], 0
        for index in members:
            found += [(before + start, name) for start, name in self.samples.images(index)]
            before += int(self.samples.lengths[index])
        return found

    @property
    def lengths(self) -> Numbers:
        """Tokens in each row."""
        totals = np.concatenate([[0], np.cumsum(self.samples.lengths[self.members], dtype=np.int64)])
        return np.diff(totals[self.ends], prepend=0)


def plan_rows(samples: Samples, data: Data, seed: int) -> dict[str, Numbers]:
    """The rows for training and for validation, as arrays for Rows: {train,validation}_{members,ends}."""
    plan = {}
    for name, chosen in zip(("train", "validation"), _parts(samples, data, seed), strict=True):
        bins: Sequence[Sequence[int]] = [[place] for place in range(len(chosen))]
        if data.pack:
            bins = pack_lengths(samples.lengths[chosen].tolist(), data.max_length)
        order = np.fromiter((place for one in bins for place in one), dtype=np.int64, count=len(chosen))
        plan[f"{name}_members"] = chosen[order]
        plan[f"{name}_ends"] = np.cumsum([len(one) for one in bins], dtype=np.int64)
    return plan


def _parts(samples: Samples, data: Data, seed: int) -> tuple[Numbers, Numbers]:
    """Numbers of the samples to train on and to validate on. Every source has a stream of choices of its own, so that
    adding one does not change what others give."""
    train, held = [], []
    sources = samples.places[:, 0]
    share = data.validation if isinstance(data.validation, float) else 0.0
    for number, source in enumerate(data.sources):
        mine = np.flatnonzero(sources == number)
        rng = np.random.default_rng([seed, number])
        apart = rng.random(len(mine)) < share
        held.append(mine[apart])
        train.append(_weighted(mine[~apart], source.weight, rng))
    held.append(np.flatnonzero(sources >= len(data.sources)))
    return np.concatenate(train), np.concatenate(held)


def _weighted(numbers: Numbers, weight: float, rng: np.random.Generator) -> Numbers:
    """Every sample int(weight) times, and a random share of them once more for the rest."""
    whole, part = divmod(weight, 1.0)
    more = rng.choice(numbers, round(part * len(numbers)), replace=False)
    return np.concatenate([np.repeat(numbers, int(whole)), np.sort(more)])
