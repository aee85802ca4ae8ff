"""Which rows a step trains on: all of an epoch once, the same after any restart, on any number of ranks."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.order import Order


def order_of(rows, batch, seed=3, grouped=False):
    return Order(np.random.default_rng(seed).integers(1, 500, rows), seed, batch, grouped)


@settings(max_examples=50)
@given(st.integers(1, 90), st.integers(1, 40), st.booleans())
def test_every_epoch_has_every_row_once_and_another_order(rows, batch, grouped):
    order = order_of(rows, batch, grouped=grouped)
    seen = np.concatenate([order.step(number) for number in range(3 * rows // batch + 1)])[: 3 * rows]
    epochs = seen.reshape(3, rows)
    assert all(sorted(epoch) == list(range(rows)) for epoch in epochs)
    assert grouped or rows < 9 or not np.array_equal(epochs[0], epochs[1])


@pytest.mark.parametrize("grouped", [False, True])
def test_any_number_of_ranks_trains_on_the_same_rows_in_the_same_step(grouped):
    order = order_of(101, 16, grouped=grouped)
    for world, micro_rows in ((1, 16), (2, 4), (8, 2), (16, 1)):
        ranks = [list(order.batches(rank, world, micro_rows, 20)) for rank in range(world)]
        assert {len(batches) for batches in ranks} == {20 * 16 // (world * micro_rows)}
        per_step = len(ranks[0]) // 20
        for step in range(20):
            rows = [row for rank in ranks for one in rank[step * per_step : (step + 1) * per_step] for row in one]
            assert sorted(rows) == sorted(order.step(step))


def test_a_step_is_the_same_whatever_was_asked_before():
    first, later = order_of(50, 8), order_of(50, 8)
    for number in range(30):
        first.step(number)
    assert all(np.array_equal(first.step(number), later.step(number)) for number in (29, 0, 17, 3))


def test_ranks_get_nearly_the_same_tokens():
    order = order_of(4096, 256)
    for step in range(16):
        shares = [order.lengths[order._dealt(order.step(step), rank, 8)].sum() for rank in range(8)]
        assert max(shares) < 1.05 * min(shares)


def test_grouped_rows_of_a_step_are_of_like_length():
    spread = [np.ptp(order.lengths[order.step(number)]) for order in (order_of(4000, 16, grouped=True),)
              for number in range(200)]  # fmt: skip
    mixed = order_of(4000, 16)
    assert np.mean(spread) < 0.1 * np.mean([np.ptp(mixed.lengths[mixed.step(number)]) for number in range(200)])


def test_fewer_rows_than_a_step_needs_come_more_than_once():
    assert sorted(np.bincount(order_of(3, 8).step(0))) == [2, 3, 3]


def test_another_seed_gives_another_order():
    assert not np.array_equal(order_of(50, 50, seed=1).step(0), order_of(50, 50, seed=2).step(0))
