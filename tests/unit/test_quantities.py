"""Durations and sizes: what is read, what is refused, and what Slurm is given."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.job.quantities import duration_s, size_bytes, slurm_mem, slurm_time


@pytest.mark.parametrize(("text", "seconds"), [("90m", 5400), ("12h", 43200), ("1d12h", 129600), ("1d1h1m1s", 90061)])
def test_duration(text, seconds):
    assert duration_s(text) == seconds


@pytest.mark.parametrize("text", ["", "0s", "0h0m", "12", "12 h", "h", "1h1d", "-1h", "1.5h", "12:30:00", "1H", "1h\n"])
def test_bad_duration(text):
    with pytest.raises(ValueError, match="must be a duration"):
        duration_s(text)


@pytest.mark.parametrize(("text", "size"), [("1", 1), ("1k", 1000), ("1.5Gi", 3 * 2**29), ("141G", 141 * 10**9)])
def test_size(text, size):
    assert size_bytes(text) == size


@pytest.mark.parametrize("text", ["", "0", "0Gi", "0.1", "1GB", "1 Gi", "-1Gi", "Gi", "1e3", "512gi", "1Gi\n"])
def test_bad_size(text):
    with pytest.raises(ValueError, match="must be a size"):
        size_bytes(text)


@given(st.integers(0, 400), st.integers(0, 23), st.integers(0, 59), st.integers(1, 59))
def test_slurm_time_says_the_same(days, hours, minutes, seconds):
    text = slurm_time(duration_s(f"{days}d{hours}h{minutes}m{seconds}s"))
    given_days, clock = text.split("-")
    assert [int(given_days), *map(int, clock.split(":"))] == [days, hours, minutes, seconds]


@given(st.integers(1, 2**50))
def test_slurm_mem_is_never_less(size):
    mebibytes = int(slurm_mem(size).removesuffix("M"))
    assert size <= mebibytes * 2**20 < size + 2**20
