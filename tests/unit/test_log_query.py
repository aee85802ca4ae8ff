"""Which lines a user asked for."""

import re
from datetime import datetime, timedelta, timezone

import pytest

from launcher.errors import SpecError
from launcher.logs.line import Gap, LogLine, LogQuery, gap_line, last_drawing, picked, tailed


def texts(query, lines, processes_per_node=4):
    """What is left of one batch."""
    found = tailed(picked([lines], query.picks(processes_per_node)), query.tail)
    return [line.text for batch in found for line in batch]


def lines(*raw, node=1):
    return [LogLine(node, text.encode()) for text in raw]


def test_a_rank_is_on_its_node():
    assert LogQuery(rank=6).nodes(3, 4) == [1]
    assert LogQuery(rank=6, node=1).nodes(3, 4) == [1]
    assert LogQuery(rank=6, node=2).nodes(3, 4) == []
    assert LogQuery().nodes(3, 4) == [0, 1, 2]


@pytest.mark.parametrize(("query", "words"), [
    (LogQuery(node=3), "--node: must be 0 to 2 in this run, not 3"),
    (LogQuery(rank=12), "--rank: must be 0 to 11 in this run, not 12")])
def test_what_the_run_does_not_have_is_refused(query, words):
    with pytest.raises(SpecError, match=words):
        query.nodes(3, 4)


def test_unmarked_lines_are_of_the_nodes_first_rank():
    printed = lines("plain", "[rank 4] own", "[rank4]: torch's", "[rank 5] other", "[rank5]: Traceback", "[rank five]",
                    "[rank 55] x", " [rank 5] indented")
    assert texts(LogQuery(rank=4), printed) == ["plain", "[rank 4] own", "[rank4]: torch's", "[rank five]",
                                                " [rank 5] indented"]
    assert texts(LogQuery(rank=5), printed) == ["[rank 5] other", "[rank5]: Traceback"]


def test_a_pattern_is_searched_anywhere():
    assert texts(LogQuery(grep=re.compile(r"lo\w+ 2\.")), lines("step 1 loss 2.5", "loss 3", "Loss 2.")) == [
        "step 1 loss 2.5"]


def test_the_tail_counts_what_the_other_filters_leave():
    assert texts(LogQuery(grep=re.compile("a"), tail=2), lines("a1", "b", "a2", "a3", "b")) == ["a2", "a3"]
    assert texts(LogQuery(tail=0), lines("a")) == []


def test_since_is_a_point_in_time_of_any_zone():
    stamped = [LogLine(0, str(second).encode(), f"2026-11-24T11:00:{second:02}.500000000Z") for second in range(4)]
    there = datetime(2026, 11, 24, 12, 0, 2, 500000, timezone(timedelta(hours=1)))
    assert texts(LogQuery(since=there), [*stamped, LogLine(0, b"no stamp")]) == ["2", "3", "no stamp"]


def test_a_gap_is_shown_unless_it_was_before():
    gaps = [gap_line(0, Gap("2026-11-24T11:00:01Z", before, "why")) for before in ("2026-11-24T11:00:02Z", None)]
    assert [gap.text for gap in gaps] == [
        "launch: lines may be missing between 2026-11-24T11:00:01Z and 2026-11-24T11:00:02Z: why",
        "launch: lines may be missing after 2026-11-24T11:00:01Z: why"]
    assert len(texts(LogQuery(rank=1, grep=re.compile("nothing")), gaps)) == 2
    assert len(texts(LogQuery(since=datetime.fromisoformat("2026-11-24T11:00:03Z")), gaps)) == 1


def test_the_last_drawing():
    assert [last_drawing(raw) for raw in (b"1%\r50%\r", b"1%\r50%", b"\r", b"a\r\r", b"whole")] == [
        b"50%", b"50%", b"", b"a", b"whole"]
