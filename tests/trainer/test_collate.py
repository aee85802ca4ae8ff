"""Packed samples do not see each other: their logits are those of each sample alone."""

import numpy as np
import torch

from trainer.config.job import Shape
from trainer.data.collate import Collator
from trainer.data.rows import Row
from trainer.data.store import ids_of
from trainer.new_model.create import new_model

SHAPE = Shape(
    hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2, vocab_size=300, max_positions=64
)


def sample(*ids):
    """As it is stored: all but the first token are trained."""
    return np.array([~ids[0], *ids[1:]], dtype=np.int32)


def batch_of(rows, width):
    return Collator(2, width)([Row(number, samples, []) for number, samples in enumerate(rows, 5)])


def test_positions_restart_and_padding_is_never_trained():
    batch = batch_of([[sample(5, 6, 7), sample(8, 9)], [sample(1, 2)]], 8)
    assert batch["input_ids"].tolist() == [[5, 6, 7, 8, 9, 2, 2, 2], [1, 2, 2, 2, 2, 2, 2, 2]]
    assert batch["position_ids"].tolist() == [[0, 1, 2, 0, 1, 0, 1, 2], [0, 1, 0, 1, 2, 3, 4, 5]]
    assert batch["labels"].tolist() == [
        [-100, 6, 7, -100, 9, -100, -100, -100],
        [-100, 2, -100, -100, -100, -100, -100, -100],
    ]
    assert batch["rows"] == [5, 6]
    assert "attention_mask" not in batch


def test_rows_are_padded_to_the_longest_without_a_length():
    assert batch_of([[sample(1, 2, 3)], [sample(1)]], None)["input_ids"].shape == (2, 3)


def test_borders_are_the_cumulative_lengths_of_samples_and_padding_over_all_rows():
    batch = Collator(2, 8)([Row(0, [sample(5, 6, 7), sample(8, 9)], []), Row(1, [sample(*range(8))], [])])
    assert batch["cu_seq_lens_q"].tolist() == [0, 3, 5, 8, 16]
    assert batch["cu_seq_lens_q"].dtype == torch.int32
    assert batch["max_length_q"] == 8


def test_packed_logits_equal_those_of_each_sample_alone():
    model = new_model(SHAPE, 0).eval()
    samples = [sample(*torch.randint(3, 300, (length,)).tolist()) for length in (9, 14, 3, 6)]
    batch = batch_of([samples[:3], samples[3:]], 40)
    with torch.no_grad():
        packed = model(input_ids=batch["input_ids"], position_ids=batch["position_ids"], use_cache=False).logits
        for row, start, one in ((0, 0, samples[0]), (0, 9, samples[1]), (0, 23, samples[2]), (1, 0, samples[3])):
            alone = model(input_ids=torch.tensor([ids_of(one).tolist()])).logits[0]
            torch.testing.assert_close(packed[row, start : start + len(one)], alone, atol=1e-5, rtol=0)


def test_changing_a_sample_leaves_the_logits_of_its_row_neighbours_as_they_were():
    model = new_model(SHAPE, 0).eval()
    first, second = (torch.randint(3, 300, (length,)).tolist() for length in (9, 14))
    with torch.no_grad():
        logits = [
            model(**{name: batch_of([[sample(*first), sample(*changed)]], 30)[name] for name in
                     ("input_ids", "position_ids")}, use_cache=False).logits[0, :9]
            for changed in (second, [*second[:5], 7, *second[6:]])
        ]  # fmt: skip
    assert torch.equal(*logits)
