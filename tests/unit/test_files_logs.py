"""Following log files: nothing is lost, repeated or reordered, however the file grows."""

import itertools
from collections import defaultdict

from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.logs.files import LogFiles
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
