"""Packing: every sample once, whole, in as few rows as can be."""

from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.data.pack import pack_lengths

CAPACITY = 12


@given(st.lists(st.integers(1, 64), max_size=60), st.integers(64, 90))
def test_every_sample_is_in_one_row_whole_and_no_row_is_too_long(lengths, capacity):
    bins = pack_lengths(lengths, capacity)
    assert sorted(index for one in bins for index in one) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in one) <= capacity for one in bins)
    assert bins == pack_lengths(lengths, capacity)


@settings(max_examples=60)
@given(st.lists(st.integers(1, CAPACITY), min_size=1, max_size=6))
def test_at_most_the_bound_of_best_fit_decreasing_above_the_optimum(lengths):
    """11/9 of the optimum and 6/9 (Dosa 2007 for first fit; best fit decreasing has the same bound)."""
    assert len(pack_lengths(lengths, CAPACITY)) <= 11 / 9 * fewest_bins(lengths) + 6 / 9


def fewest_bins(lengths):
    """Every order, filled one row after the other: one of them is the optimum."""
    return min(rows_of(order) for order in set(permutations(lengths)))


def rows_of(order):
    rows, room = 0, 0
    for length in order:
        if length > room:
            rows, room = rows + 1, CAPACITY
        room -= length
    return rows


def test_the_fullest_row_that_still_takes_a_sample_takes_it():
    assert pack_lengths([7, 6, 3], 10) == [[0, 2], [1]]


def test_a_sample_longer_than_a_row_is_refused():
    with pytest.raises(ValueError, match="sample 1 has 11 tokens, allowed: 10"):
        pack_lengths([3, 11], 10)
