"""Which rows each step trains on, and on which rank. Pure: the state of the order is the number of the step.

Epochs follow each other without a gap: step k takes the rows k*batch ... (k+1)*batch of an endless list, in which every
epoch is another permutation of all rows. So every step has the same shape, and a run that goes on, on however many
ranks with the same rows per step, trains on the same rows as one that was never stopped.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.int64]
CHUNK_STEPS = 50  # steps within which rows of like length are put together


@dataclass(frozen=True)
class Order:
    """`lengths`: tokens of each row; `batch`: rows of one step, on all ranks; `grouped`: rows of like length into one
    step."""

    lengths: Numbers
    seed: int
    batch: int
    grouped: bool = False

    def step(self, number: int) -> Numbers:
        """Numbers of the rows of a step, counted from 0."""
        places = np.arange(number * self.batch, (number + 1) * self.batch)
        epochs, within = np.divmod(places, len(self.lengths))
        return np.concatenate([self._epoch(int(epoch))[within[epochs == epoch]] for epoch in np.unique(epochs)])

    def batches(self, rank: int, world: int, micro_rows: int, steps: int) -> Iterator[list[int]]:
        """The micro-batches of one rank, for `steps` steps; `batch` is a multiple of world * micro_rows."""
        for number in range(steps):
            mine = self._dealt(self.step(number), rank, world)
            for start in range(0, len(mine), micro_rows):
                yield mine[start : start + micro_rows].tolist()

    def _dealt(self, rows: Numbers, rank: int, world: int) -> Numbers:
        """One rank's share: from the longest to the shortest, there and back over the ranks, so that all get nearly as
        many tokens; the longest first, so that a micro-batch has rows of like length."""
        ranked = rows[np.argsort(-self.lengths[rows], kind="stable")]
        place = np.arange(len(ranked))
        turn = np.minimum(place % (2 * world), 2 * world - 1 - place % (2 * world))
        mine: Numbers = ranked[turn == rank]
        return mine

    @cached_property
    def _epochs(self) -> dict[int, Numbers]:
        return {}

    def _epoch(self, epoch: int) -> Numbers:
        """All rows in the order of one epoch; the last two are kept."""
        if epoch not in self._epochs:
            while len(self._epochs) > 1:
                del self._epochs[next(iter(self._epochs))]
            self._epochs[epoch] = self._permutation(np.random.default_rng([self.seed, epoch]))
        return self._epochs[epoch]

    def _permutation(self, rng: np.random.Generator) -> Numbers:
        order = rng.permutation(len(self.lengths))
        if not self.grouped:
            return order
        chunk = CHUNK_STEPS * self.batch
        chunks = [order[start : start + chunk] for start in range(0, len(order), chunk)]
        ranked = np.concatenate([one[np.argsort(-self.lengths[one], kind="stable")] for one in chunks])
        groups = [ranked[start : start + self.batch] for start in range(0, len(ranked), self.batch)]
        return np.concatenate([groups[number] for number in rng.permutation(len(groups))])
