import pytest
from hypothesis import given
from hypothesis import strategies as st

from trainer.data.pack import pack_lengths


@given(st.lists(st.integers(1, 64), max_size=200))
def test_every_sample_is_in_one_bin_and_no_bin_is_too_full(lengths):
    bins = pack_lengths(lengths, 64)
    assert sorted(index for chosen in bins for index in chosen) == list(range(len(lengths)))
    assert all(sum(lengths[index] for index in chosen) <= 64 for chosen in bins)
    assert len(bins) <= 1 + 2 * sum(lengths) // 64  # two bins less than half full would have been one


def test_best_fit_takes_the_fullest_bin_that_fits():
    assert pack_lengths([6, 5, 4, 5], 10) == [[0, 2], [1, 3]]


def test_too_long_a_sample_is_an_error():
    with pytest.raises(ValueError, match="allowed: 10"):
        pack_lengths([11], 10)
