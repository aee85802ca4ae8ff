"""Output: data on stdout, talk on stderr, colour on terminals only."""

import json
import os
import pty
import subprocess
import sys

import pytest

from launcher import ui
from launcher.backends.base import JobStatus, LogLine, NodeStatus, State
from launcher.errors import SpecError

LINES = [LogLine(0, b"a"), LogLine(11, b"b [bold]c", "2026-01-01T00:00:00Z")]


def test_data_and_talk_are_apart(capsys):
    ui.data("handle")
    ui.note("sending")
    ui.warn("odd")
    assert capsys.readouterr() == ("handle\n", "* sending\nwarning: odd\n")


def test_an_error_has_one_line_for_each_mistake(capsys):
    ui.show_error(SpecError("one\n  a detail\ntwo", "do this"))
    assert capsys.readouterr() == ("", "error: one\n  a detail\nerror: two\nhint:  do this\n")


def test_log_lines_have_their_node_in_front(capsys):
    ui.print_logs(iter(LINES), nodes=12, json_lines=False)
    assert capsys.readouterr().out == "[node  0] a\n[node 11] b [bold]c\n"


def test_log_lines_as_json(capsys):
    ui.print_logs(iter(LINES), nodes=12, json_lines=True)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"node": 0, "text": "a", "stamp": None}, {"node": 11, "text": "b [bold]c", "stamp": "2026-01-01T00:00:00Z"}]


def test_a_table_is_aligned(capsys):
    ui.print_table(["RUN", "STATE"], [["long-name", "failed"], ["x", "running"]])
    assert capsys.readouterr().out == "RUN        STATE\nlong-name  failed\nx          running\n"


def test_status_rows():
    nodes = (NodeStatus(0, State.RUNNING, "h", restarts=2), NodeStatus(1, State.FAILED, exit_code=3, reason="oom"))
    status = JobStatus(State.RUNNING, nodes=nodes)
    assert ui.status_rows(status) == [["0", "running", "h", "-", "2", ""], ["1", "failed", "-", "3", "0", "oom"]]


SHOW = """
from launcher import ui
from launcher.backends.base import LogLine
ui.print_logs(iter([LogLine(0, b"a [b]c\\x1b[31mred")]), nodes=1, json_lines=False)
ui.print_table(["STATE", "RUN"], [["failed", "[x]"]])
"""


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colour_on_a_terminal_unless_refused(no_color, coloured):
    """The text itself is never taken for markup."""
    leader, follower = pty.openpty()
    subprocess.run([sys.executable, "-c", SHOW], stdout=follower, check=True,
                   env={**os.environ, "NO_COLOR": no_color, "TERM": "xterm", "COLUMNS": "80"})
    os.close(follower)
    shown = os.read(leader, 10000).decode()
    os.close(leader)
    assert ("\x1b[36m[node 0] " in shown) == coloured
    assert "a [b]c" in shown
    assert "[x]" in shown
