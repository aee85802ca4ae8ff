"""Following log files: nothing is lost, repeated or reordered, however the file grows."""

import itertools
import os
import tracemalloc
from collections import defaultdict
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.backends.hosts.log_files import LogFiles
from launcher.errors import SpecError
from launcher.logs.line import LogQuery

NODES = st.integers(0, 3)
LINE = st.text(st.characters(exclude_characters="\n\r", exclude_categories=["Cs"]), max_size=20)


BEGAN = "2026-11-24T11:00:00+00:00"


def collect(batches):
    """Texts by node."""
    found = defaultdict(list)
    for batch in batches:
        for line in batch:
            found[line.node].append(line.text)
    return dict(found)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(NODES, st.lists(LINE, min_size=1, max_size=8), min_size=1), st.lists(st.integers(0, 30)))
def test_every_line_once_and_in_order(tmp_path_factory, nodes, sizes):
    folder = tmp_path_factory.mktemp("logs")
    chunks = {node: itertools.cycle([1, *sizes]) for node in nodes}  # one each, so that every file grows
    pending = {node: ("\n".join(lines) + "\n").encode() for node, lines in nodes.items()}

    def grow(_seconds=0):
        """Between two looks of the follower each file grows by any number of bytes."""
        for node, rest in pending.items():
            size = next(chunks[node])
            with (folder / f"node-{node}.log").open("ab") as file:
                file.write(rest[:size])
            pending[node] = rest[size:]

    def ended():
        grow()
        return not any(pending.values())

    files = LogFiles(folder, list(range(4)), began=BEGAN, ended=ended, sleep=grow)
    assert collect(files.read(LogQuery(follow=True))) == nodes


def write(folder, **files):
    for name, text in files.items():
        (folder / f"{name.replace('_', '-')}.log").write_text(text)


def read(folder, nodes=(0, 1, 11), **options):
    return collect(LogFiles(folder, list(nodes), began=BEGAN, ended=lambda: True).read(LogQuery(**options)))


def test_tail_counts_for_each_node(tmp_path):
    write(tmp_path, node_0="a\nb\nc\n", node_1="d\n")
    assert read(tmp_path, tail=2) == {0: ["b", "c"], 1: ["d"]}
    assert read(tmp_path, tail=0) == {}


def test_one_node(tmp_path):
    write(tmp_path, node_1="a\n", node_11="b\n")
    assert read(tmp_path, [1]) == {1: ["a"]}
    assert read(tmp_path, [7]) == {}


def test_the_last_line_needs_no_line_end(tmp_path):
    write(tmp_path, node_0="a\nb")
    assert read(tmp_path) == {0: ["a", "b"]}


def test_a_redrawn_progress_line_shows_its_last_state(tmp_path):
    (tmp_path / "node-0.log").write_bytes(b"10%\r50%\r100%\r\nnext\r\nbroken \xff\n")
    assert read(tmp_path) == {0: ["100%", "next", "broken \ufffd"]}


def test_an_unfinished_line_is_live_and_then_given_whole(tmp_path):
    path = tmp_path / "node-0.log"
    path.write_bytes(b"done\n10%\r20%\r")
    pieces = iter([b"", b"30%\r40", b"%\r\nhalf", b" line"])

    def more(_seconds):
        with path.open("ab") as file:
            file.write(next(pieces, b""))

    ends = iter([False] * 4 + [True])
    files = LogFiles(tmp_path, [0], began=BEGAN, ended=lambda: next(ends), sleep=more)
    found = [(line.text, line.live) for batch in files.read(LogQuery(follow=True, live=True)) for line in batch]
    assert found == [("done", False), ("20%", True), ("40", True), ("40%", False), ("half", True), ("half line", False)]


def test_a_line_redrawn_for_hours_takes_no_memory(tmp_path):
    path = tmp_path / "node-0.log"
    path.write_bytes(b"".join(b"%9d%%\r" % number for number in range(500_000)) + b"end\n")
    tracemalloc.start()
    found = read(tmp_path)
    most = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == {0: ["end"]}
    assert most < path.stat().st_size


def test_the_attempts_of_a_node_come_in_order(tmp_path):
    for attempt in (0, 2, 10):
        (tmp_path / f"node-1.r{attempt}.log").write_text(f"{attempt} one\n{attempt} half")
    want = [f"{attempt} {word}" for attempt in (0, 2, 10) for word in ("one", "half")]
    assert read(tmp_path) == {1: want}
    assert read(tmp_path, follow=True) == {1: want}
    assert read(tmp_path, tail=3) == {1: want[-3:]}


def test_since_leaves_out_files_that_were_written_before(tmp_path):
    write(tmp_path, node_0="a\n", node_1="b\n")
    (tmp_path / "node-1.r1.log").write_text("c\n")
    for name, minute in (("node-0.log", 10), ("node-1.log", 10), ("node-1.r1.log", 30)):
        moment = datetime(2026, 11, 24, 11, minute, tzinfo=UTC).timestamp()
        os.utime(tmp_path / name, (moment, moment))
    for hour, minute, want in ((10, 59, {0: ["a"], 1: ["b", "c"]}), (11, 31, {})):
        assert read(tmp_path, since=datetime(2026, 11, 24, hour, minute, tzinfo=UTC)) == want
    with pytest.raises(SpecError, match=r"got 2026-11-24T11:20:00\+00:00, but lines of .*node-1.r1.log have no times"):
        read(tmp_path, since=datetime(2026, 11, 24, 11, 20, tzinfo=UTC))
    (tmp_path / "node-1.r1.log").unlink()
    assert read(tmp_path, since=datetime(2026, 11, 24, 11, 20, tzinfo=UTC)) == {}


def at(minute, second=0):
    return datetime(2026, 11, 24, 11, minute, second, tzinfo=UTC)


def test_since_within_a_file_begins_at_the_newest_mark_before(tmp_path):
    write(tmp_path, node_0="one\ntwo\nthree\nfour\n", node_1="other\n")
    for name in ("node-0.log", "node-1.log"):
        os.utime(tmp_path / name, (at(50).timestamp(), at(50).timestamp()))
    marks = [(at(10), 4, "node-0.log"), (at(20), 10, "node-0.log"), (at(30), 14, "node-0.log"),
             (at(1), 6, "node-1.log"), (at(2), 9999, "node-0.log")]
    text = "".join(f"{int(moment.timestamp())} {size} {name}\n" for moment, size, name in marks)
    (tmp_path / "times").write_text(f"{text}damaged\n{int(at(1).timestamp())} 14 node-0.l")
    wanted = {at(9): ["one", "two", "three", "four"], at(10): ["two", "three", "four"],
              at(19, 59): ["two", "three", "four"], at(20): ["three", "four"], at(45): ["four"]}
    for since, want in wanted.items():
        assert read(tmp_path, since=since)[0] == want
    assert read(tmp_path, [1], since=at(1)) == {}
    assert read(tmp_path, [1], since=at(0, 59)) == {1: ["other"]}


def test_lines_that_come_after_since_are_followed(tmp_path):
    write(tmp_path, node_0="old\n")
    since = datetime.now(UTC) + timedelta(seconds=60)
    ends = iter([False, True])

    def more(_seconds):
        with (tmp_path / "node-0.log").open("a") as file:
            file.write("new\n")

    files = LogFiles(tmp_path, [0], began=BEGAN, ended=lambda: next(ends), sleep=more)
    assert collect(files.read(LogQuery(follow=True, since=since))) == {0: ["new"]}


def test_no_folder_is_no_lines(tmp_path):
    assert read(tmp_path / "absent") == {}


def test_tail_while_following_gives_what_comes_later(tmp_path):
    write(tmp_path, node_0="a\nb\n")
    ends = iter([False, True])

    def more(_seconds):
        with (tmp_path / "node-0.log").open("a") as file:
            file.write("c\nd\n")

    files = LogFiles(tmp_path, [0], began=BEGAN, ended=lambda: next(ends), sleep=more)
    assert collect(files.read(LogQuery(follow=True, tail=1))) == {0: ["b", "c", "d"]}
