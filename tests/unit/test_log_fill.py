"""Filling a gap from the job's own copy of its log: exactly, or not at all."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.backends.kubernetes.logs.fill import UnfilledError, missing_lines
from launcher.logs.line import Gap

WORDS = st.lists(st.tuples(st.integers(0, 2000), st.sampled_from(["a", "b", "c", "", "d\r"])), min_size=2, max_size=40)


def stamped(moment_ms, text, late_ns=0):
    """A line at so many milliseconds after 11:00."""
    seconds, ms = divmod(moment_ms, 1000)
    return f"2026-11-24T11:{seconds // 60:02}:{seconds % 60:02}.{ms:03}{late_ns:06}Z {text}".encode()


def log_of(steps):
    moments = itertools.accumulate(step for step, _ in steps)
    return [(moment, text) for moment, (_, text) in zip(moments, steps, strict=True)]


def filled(lines, first, last, *, copy=None, late_ns=1000):
    """What is found for the lines from `first` to `last`, which are missing."""
    node = [stamped(moment, text.rstrip("\r"), 500) for moment, text in lines]
    copy = [stamped(moment, text, late_ns) for moment, text in lines] if copy is None else copy
    before, after = node[max(0, first - 50):first], node[last:]
    gap = Gap(node[first - 1][:30].decode(), after[0][:30].decode() if after else None, "why")
    return missing_lines([*copy, b"end"], before, after, gap), gap


@given(WORDS, st.data())
def test_a_gap_is_filled_exactly_or_not_at_all(steps, data):
    lines = log_of(steps)
    first = data.draw(st.integers(1, len(lines)))
    last = data.draw(st.integers(first, len(lines)))
    try:
        found, gap = filled(lines, first, last)
    except UnfilledError:
        return
    assert [line[31:].decode() for line in found] == [text for _, text in lines[first:last]]
    stamps = [line[:30].decode() for line in found]
    assert stamps == sorted(stamps)
    assert all(gap.after < stamp for stamp in stamps)
    if gap.before and gap.before > gap.after:  # else there is no time between them
        assert all(stamp < gap.before for stamp in stamps)


@given(st.lists(st.integers(0, 100_000), min_size=3, max_size=40), st.data())
def test_lines_that_differ_are_always_found(steps, data):
    lines = log_of([(step, f"step {number}") for number, step in enumerate(steps)])
    first = data.draw(st.integers(1, len(lines)))
    last = data.draw(st.integers(first, len(lines)))
    found, _ = filled(lines, first, last, late_ns=data.draw(st.sampled_from([0, 999_999])))
    assert [line[31:].decode() for line in found] == [text for _, text in lines[first:last]]


NUMBERED = log_of([(100, str(number)) for number in range(10)])


@pytest.mark.parametrize(("copy", "why"), [
    ([], "the lines before it are not in the copy"),
    ([stamped(moment, text) for moment, text in NUMBERED[:4]], "the lines after it are not in the copy"),
    ([stamped(moment, text) for moment, text in NUMBERED[2:]], "the lines before it are not in the copy"),
    ([stamped(100 * number, "3") for number in range(10)], "the lines before it are not in the copy"),
])
def test_what_does_not_fit_is_not_taken(copy, why):
    with pytest.raises(UnfilledError, match=why):
        filled(NUMBERED, 4, 8, copy=copy)


def test_the_end_of_a_log_is_filled_only_from_a_copy_that_has_it():
    copy = [stamped(moment, text) for moment, text in NUMBERED]
    before, gap = copy[:4], Gap(copy[3][:30].decode(), None, "why")
    assert missing_lines([*copy, b"end"], before, [], gap) == copy[4:]
    assert missing_lines([*copy, b"end"], [], [], Gap("2026-11-24T11:00:00Z", None, "why")) == copy
    with pytest.raises(UnfilledError, match="ends early, too"):
        missing_lines(copy, before, [], gap)
