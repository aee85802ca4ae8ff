"""Weights that are not in memory: a shape, and rows that are computed when they are asked for.

Conversions between layouts only move rows, so a weight of the written checkpoint is runs of rows of others, and merging
holds a few rows at a time, whatever the size of the model.
"""

from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from itertools import accumulate
from math import prod
from typing import NamedTuple

import torch

BLOCK_ELEMENTS = 2**20  # in float32, 4 MiB at a time


class Weight(ABC):
    """A tensor of at least one dimension, by its rows (the first dimension)."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    @abstractmethod
    def rows(self, start: int, stop: int) -> torch.Tensor:
        """Rows `start` to `stop`: [stop - start, *shape[1:]]. Raises ConfigError when they cannot be read."""

    def blocks(self) -> Iterator[torch.Tensor]:
        """All rows in order, some at a time."""
        step = max(1, BLOCK_ELEMENTS // max(1, prod(self.shape[1:])))
        for start in range(0, self.shape[0], step):
            yield self.rows(start, min(start + step, self.shape[0]))

    def whole(self) -> torch.Tensor:
        """All rows in memory."""
        return self.rows(0, self.shape[0])


class Run(NamedTuple):
    """Rows `start` to `stop` of a weight."""

    weight: Weight
    start: int
    stop: int


class Gathered(Weight):
    """Runs of rows of other weights, one below the other."""

    def __init__(self, runs: Sequence[Run]) -> None:
        self.runs = runs
        self._ends = list(accumulate(run.stop - run.start for run in runs))
        self.shape = (self._ends[-1], *runs[0].weight.shape[1:])
        self.dtype = runs[0].weight.dtype

    def rows(self, start: int, stop: int) -> torch.Tensor:
        parts, place = [], start
        for number in range(bisect_right(self._ends, start), len(self.runs)):
            if place >= stop:
                break
            run, end = self.runs[number], self._ends[number]
            upto = min(stop, end)
            parts.append(run.weight.rows(run.stop - (end - place), run.stop - (end - upto)))
            place = upto
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class Rounded(Weight):
    """A weight in bf16, rounded once; numbers that are no fractions stay what they are."""

    def __init__(self, weight: Weight) -> None:
        self.weight, self.shape = weight, weight.shape
        self.dtype = torch.bfloat16 if weight.dtype.is_floating_point else weight.dtype

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self.weight.rows(start, stop).to(self.dtype)


def gather(sources: Sequence[Weight], owners: torch.Tensor, places: torch.Tensor) -> Weight:
    """A weight whose row i is row `places[i]` of `sources[owners[i]]`; neighbours become one run. Both int64 [rows]."""
    breaks = (owners.diff() != 0) | (places.diff() != 1)
    starts = [0, *(breaks.nonzero().flatten() + 1).tolist()]
    stops = [*starts[1:], len(owners)]
    runs = [
        Run(sources[int(owners[start])], int(places[start]), int(places[start]) + stop - start)
        for start, stop in zip(starts, stops, strict=True)
    ]
    if len(runs) == 1 and runs[0].stop - runs[0].start == runs[0].weight.shape[0]:
        return runs[0].weight
    return Gathered(runs)
