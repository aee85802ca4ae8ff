"""Output: data on stdout, talk on stderr, colour on terminals only."""

import json
import pty
import re
from contextlib import redirect_stderr, redirect_stdout, suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from launcher.backends.base import LogLine
from launcher.errors import SpecError
from launcher.logs.line import Gap, gap_line
from launcher.runs.status import JobStatus, NodeStatus, State
from launcher.terminal import control, ui
from launcher.terminal.control import printable
from trainer.node import output

# what a terminal takes for orders, or for another direction of writing
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
LINES = [LogLine(0, b"a \xff\x1b[2J"), LogLine(11, b"b [bold]c", "2026-01-01T00:00:00Z")]


def test_data_and_talk_are_apart(capsys):
    ui.data("handle")
    ui.note("sending")
    ui.warn("odd")
    assert capsys.readouterr() == ("handle\n", "* sending\nwarning: odd\n")


def test_an_error_has_one_line_for_each_mistake(capsys):
    ui.show_error(SpecError("one\n  a detail\ntwo", "do this"))
    assert capsys.readouterr() == ("", "error: one\n  a detail\nerror: two\nhint:  do this\n")


def test_log_lines_have_their_node_in_front_when_there_are_several(capsysbinary):
    ui.print_logs([LINES], nodes=12)
    ui.print_logs([LINES[:1]], nodes=1)
    assert capsysbinary.readouterr().out == b"[node  0] a \xff\x1b[2J\n[node 11] b [bold]c\n" + b"a \xff\x1b[2J\n"


def test_log_lines_as_json(capsys):
    ui.print_logs([LINES, [gap_line(3, Gap("A", None, "why"))]], nodes=12, json_lines=True)
    assert [json.loads(line) for line in capsys.readouterr().out.splitlines()] == [
        {"node": 0, "text": "a \ufffd\x1b[2J", "stamp": None},
        {"node": 11, "text": "b [bold]c", "stamp": "2026-01-01T00:00:00Z"},
        {"node": 3, "gap": {"after": "A", "before": None, "why": "why"}}]


def test_a_table_is_aligned(capsys):
    ui.print_table(["RUN", "STATE"], [["long-name", "failed"], ["x", "running"]])
    assert capsys.readouterr().out == "RUN        STATE\nlong-name  failed\nx          running\n"


def test_status_rows():
    nodes = (NodeStatus(0, State.RUNNING, "h", restarts=2), NodeStatus(1, State.FAILED, exit_code=3, reason="oom"))
    status = JobStatus(State.RUNNING, nodes=nodes)
    assert ui.status_rows(status) == [["0", "running", "h", "-", "2", ""], ["1", "failed", "-", "3", "0", "oom"]]


SHOW = """
from launcher.terminal import ui
from launcher.backends.base import LogLine
ui.print_logs([[LogLine(0, b"a [b]c\\x1b[31mred\\x1b[2J\\x1b]0;title\\x07\\x1b[5A\\x08end")],
               [LogLine(1, b"half", live=True), LogLine(1, b"42%", live=True), LogLine(0, b"later")]], nodes=2)
ui.print_table(["STATE", "RUN"], [["failed", "[x]"]])
"""


@pytest.mark.parametrize(("no_color", "coloured"), [("", True), ("1", False)])
def test_colour_on_a_terminal_unless_refused(no_color, coloured):
    """The text itself is never taken for markup."""
    shown = on_a_terminal(SHOW, no_color)
    assert ("\x1b[36m[node 0] " in shown) == coloured
    assert ("\x1b[31m" in shown) == coloured
    assert "a [b]c" in shown
    assert "[x]" in shown


STEP = "step 10/250  loss 2.3456  mfu 41.2%"


BY_LAUNCHER = f"""
from launcher.terminal import ui
from launcher.backends.base import LogLine
ui.print_logs([[LogLine(0, b"{STEP}")]], nodes=1)
"""
BY_TRAINER = f"""
from trainer.node.output import show
show("{STEP}")
"""


@pytest.mark.parametrize("program", [BY_LAUNCHER, BY_TRAINER], ids=["launcher", "trainer"])
def test_the_values_of_a_step_line_are_coloured_on_a_terminal_only(program):
    shown, plain = on_a_terminal(program), on_a_terminal(program, no_color="1")
    assert re.search("loss \x1b\\[[0-9;]*36m2.3456", shown)
    assert STEP in plain
    assert STEP in re.sub("\x1b\\[[0-9;]*m", "", shown)


def on_a_terminal(program, no_color=""):
    """What a program writes to a terminal."""
    leader, follower = pty.openpty()
    with open(follower, "w") as terminal, redirect_stdout(terminal), pytest.MonkeyPatch.context() as patch:
        for name, value in {"NO_COLOR": no_color, "TERM": "xterm", "COLUMNS": "80"}.items():
            patch.setenv(name, value)
        exec(program, {})
    shown = b""
    with open(leader, "rb", buffering=0) as screen, suppress(OSError):  # a terminal that nobody has open any more
        while part := screen.read(100_000):
            shown += part
    return shown.decode()


def test_what_goes_to_a_file_does_not_come_to_the_terminal(tmp_path):
    program = SHOW.replace("ui.print_table", "ui.note('told'); ui.print_table") + """
def noting():
    ui.note("told meanwhile")
    yield [LogLine(0, b"line")]
ui.print_logs(noting(), nodes=1)
"""
    with open(tmp_path / "err", "w") as errors, redirect_stderr(errors):
        assert "told" not in on_a_terminal(program)
    assert (tmp_path / "err").read_text() == "* told\n* told meanwhile\n"


def test_a_job_cannot_move_the_cursor():
    shown = on_a_terminal(SHOW)
    assert "\x1b[2J" not in shown and "title" not in shown and "\x1b[5A" not in shown and "\x08" not in shown
    assert "end" in shown


def test_unfinished_lines_stay_below_those_that_are_finished():
    shown = on_a_terminal(SHOW)
    assert shown.index("later") < shown.rindex("42%")
    assert "half" not in shown  # redrawn before anything was drawn


@given(st.text(st.characters(codec="utf-8") | st.sampled_from("\x1b\x9b[]?;0123mMHJ\\\x07\r\n\b")))
def test_what_is_printable_holds_no_control_but_colours(text):
    left = re.sub(r"\x1b\[[\d;:]*m", "", printable(text))
    assert "\n" not in left and not OBEYED.search(left)


@given(st.text(st.characters() | st.sampled_from("\x1b\x9b\u202e\u2066\x7f\t\n\r")))
def test_what_is_made_safe_holds_nothing_that_a_terminal_obeys_and_all_else(text):
    for safe in (control.terminal_safe, output.terminal_safe):
        assert not OBEYED.search(safe(text))
        if not OBEYED.search(text):
            assert safe(text) == text
    assert not OBEYED.search(control.json_text([text]))
    assert json.loads(control.json_text([text])) == [text]


def test_whatever_is_printed_is_made_safe(capsys):
    """By the functions that all commands print with."""
    bad, shown = "a\x1b]0;t\x07\x9b2J\u202eb\x7f", "a␛]0;t␇<U+009B>2J<U+202E>b<U+007F>"
    ui.data(bad + "\nforged  line")
    ui.note(bad)
    ui.warn(bad)
    ui.show_error(SpecError(f"{bad}\n  {bad}", bad))
    ui.print_table(["T"], [[bad + "\n" + bad]])
    ui.as_json({"a": bad})
    out, err = capsys.readouterr()
    assert out.splitlines() == [f"{shown} forged  line", "T", f"{shown} {shown}",
                                r'{"a": "a\u001b]0;t\u0007\u009b2J\u202eb\u007f"}']
    assert err.splitlines() == [f"* {shown}", f"warning: {shown}", f"error: {shown}", f"  {shown}", f"hint:  {shown}"]


def test_a_render_is_exact_for_a_program_and_safe_for_a_person(capsys):
    ui.raw("a\x1b[2J\n")
    assert capsys.readouterr().out == "a\x1b[2J\n"
    assert on_a_terminal(r"from launcher.terminal import ui; ui.raw('a\x1b[2J\n')") == "a␛[2J\r\n"


BAD_STEP = """
from launcher.terminal import ui
from launcher.backends.base import LogLine
ui.print_logs([[LogLine(0, b"step 1/2  loss \\x1b]0;title\\x07  lr [red]1[/red]")]], nodes=1, bar="[b]name[/b]")
"""


def test_neither_a_step_nor_a_name_is_obeyed_in_the_bar():
    shown = on_a_terminal(BAD_STEP, no_color="1")
    assert "loss ␛]0;title␇  lr [red]1[/red]" in shown
    assert "[b]name[/b]" in shown


def test_what_the_trainer_prints_of_rows_and_answers_is_safe_on_a_terminal_and_in_a_log(capsys):
    assert "A: ␛[2J<U+202E>" in on_a_terminal(r"from trainer.node.output import show; show('A: \x1b[2J\u202e')")
    output.show("A: \x1b[2J\u202e")
    output.complain("error: \x9b2J\n")
    assert capsys.readouterr() == ("A: ␛[2J<U+202E>\n", "error: <U+009B>2J\n")


def test_printable_keeps_text_and_colours():
    assert printable("\x1b[1;31mred\x1b[0m\ttab é 上") == "\x1b[1;31mred\x1b[0m\ttab é 上"
