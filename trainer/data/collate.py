"""Rows -> batch tensors. Shapes: B rows, T tokens.

Position ids start again at every sample, and there is no attention mask: transformers reads the sample borders from
the positions and lets no sample see another. Padding is one more sample, made from lengths, never from pad ids
(pad equals eos in InternLM's tokenizers).
"""

from typing import Any

import torch

from trainer.data.encode import IGNORED
from trainer.data.pipeline import Row


class Collator:
    """`length`: pad every row to it (packed rows have one shape), or None for the longest row of the batch."""

    def __init__(self, pad_id: int, length: int | None) -> None:
        self.pad_id = pad_id
        self.length = length

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        """input_ids, labels, position_ids: int64 [B, T]; rows: the B numbers of the rows."""
        width = self.length or max(sum(len(sample["input_ids"]) for sample in row.samples) for row in rows)
        ids, labels, positions = [], [], []
        for row in rows:
            used = sum(len(sample["input_ids"]) for sample in row.samples)
            padding = width - used
            ids.append([token for sample in row.samples for token in sample["input_ids"]] + [self.pad_id] * padding)
            labels.append([label for sample in row.samples for label in sample["labels"]] + [IGNORED] * padding)
            positions.append(
                [place for sample in row.samples for place in range(len(sample["input_ids"]))] + list(range(padding))
            )
        return {
            "input_ids": torch.tensor(ids),
            "labels": torch.tensor(labels),
            "position_ids": torch.tensor(positions),
            "rows": [row.number for row in rows],
        }
