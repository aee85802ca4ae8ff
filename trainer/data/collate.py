"""Rows -> batch tensors. Shapes: B rows, T tokens, S samples in all rows, padding counted.

Position ids start again at every sample, and there is no attention mask: transformers reads the sample borders from
the positions and lets no sample see another; other layers get them as cumulative lengths. Padding is one more
sample, made from lengths, never from pad ids (pad equals eos in InternLM's tokenizers).
"""

from typing import Any

import numpy as np
import torch

from trainer.data.encode import IGNORED
from trainer.data.rows import Row
from trainer.data.store import ids_of, labels_of


class Collator:
    """`length`: pad every row to it (packed rows have one shape), or None for the longest row of the batch."""

    def __init__(self, pad_id: int, length: int | None) -> None:
        self.pad_id = pad_id
        self.length = length

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        """input_ids, labels, position_ids: int64 [B, T]; rows: the B numbers of the rows; cu_seq_lens_q, int32 [S + 1],
        and max_length_q: where samples begin, under the names that transformers gives them; loss_at, int64: the places
        in B*T whose next token is trained (counted here: the device need not be asked how many there are)."""
        width = self.length or max(sum(map(len, row.samples)) for row in rows)
        ids = np.full((len(rows), width), self.pad_id, dtype=np.int64)
        labels = np.full((len(rows), width), IGNORED, dtype=np.int64)
        positions = np.empty((len(rows), width), dtype=np.int64)
        lengths: list[int] = []
        for place, row in enumerate(rows):
            tokens = np.concatenate(row.samples)
            ids[place, : len(tokens)] = ids_of(tokens)
            labels[place, : len(tokens)] = labels_of(tokens)
            sizes = [*map(len, row.samples), width - len(tokens)]
            positions[place] = np.concatenate([np.arange(size) for size in sizes])
            lengths += [size for size in sizes if size]
        trained = np.zeros_like(labels, dtype=bool)
        trained[:, :-1] = labels[:, 1:] != IGNORED
        return {
            "input_ids": torch.from_numpy(ids),
            "labels": torch.from_numpy(labels),
            "position_ids": torch.from_numpy(positions),
            "rows": [row.number for row in rows],
            "cu_seq_lens_q": torch.from_numpy(np.cumsum([0, *lengths], dtype=np.int32)),
            "max_length_q": max(lengths),
            "loss_at": torch.from_numpy(np.flatnonzero(trained)),
        }
