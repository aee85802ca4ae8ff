"""The command line itself: help, unknown commands, exit codes."""

import click
import pytest

from launcher.cli import COMMANDS, main


def run(capsys, *args):
    """Exit code, stdout, stderr of `launch ARGS` in this process."""
    with pytest.raises(SystemExit) as ended:
        main(list(args))
    return ended.value.code, *capsys.readouterr()


@pytest.fixture
def job(tmp_path):
    (tmp_path / "job.yaml").write_text("name: a\nrun: [echo, hello]\n")
    return str(tmp_path / "job.yaml")


def test_help_lists_every_command(capsys):
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert all(f"  {name}" in out for name in COMMANDS)


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_loads_and_explains_itself(name, capsys):
    code, out, _ = run(capsys, name, "--help")
    assert code == 0
    assert COMMANDS[name] in out


def test_version(capsys):
    from launcher import __version__

    assert run(capsys, "--version") == (0, f"launch, version {__version__}\n", "")


def test_an_unknown_command_names_the_nearest(capsys):
    code, out, err = run(capsys, "sumbit")
    assert (code, out) == (2, "")
    assert "there is no command 'sumbit' (did you mean submit?); there are local, submit" in err
    assert "(did you mean submit?)" in err


@pytest.mark.parametrize("args", [(), ("render",), ("render", "a", "--backend", "k9s"), ("logs", "--tail", "-1")])
def test_wrong_usage_ends_with_2(args, capsys):
    code, out, _ = run(capsys, *args)
    assert (code, out) == (2, "")


def test_validate_says_where_the_job_would_run(job, capsys):
    code, out, err = run(capsys, "validate", job)
    assert (code, out) == (0, "")
    assert err == f"* {job}: valid for this machine, back end local\n"


def test_a_defect_is_told_as_one(job, capsys, monkeypatch):
    def broken(*_args):
        raise ZeroDivisionError("oops")

    monkeypatch.setattr("launcher.commands.render.prepare", broken)
    code, out, err = run(capsys, "render", job)
    assert (code, out) == (1, "")
    assert err.startswith("error: a defect in launch: ZeroDivisionError: oops\nhint:  run it again with `launch --de")
    with pytest.raises(ZeroDivisionError):
        main(["--debug", "render", job])


@pytest.mark.parametrize("error", [KeyboardInterrupt, click.exceptions.Abort])
def test_an_interrupt_ends_with_130(job, capsys, monkeypatch, error):
    def interrupted(*_args):
        raise error

    monkeypatch.setattr("launcher.commands.render.prepare", interrupted)
    assert run(capsys, "render", job)[0] == 130


def test_nothing_is_listed_at_first(capsys):
    assert run(capsys, "list") == (0, "RUN  STATE  NODES  CREATED  HANDLE\n", "")
    code, out, err = run(capsys, "logs")
    assert (code, out) == (4, "")
    assert "hint:  start one: launch submit JOB.yaml" in err


def test_data_needs_a_train_section(job, capsys):
    code, _, err = run(capsys, "data", job)
    assert code == 2
    assert "has `run`, and launch data takes jobs with `train`" in err


def test_a_taken_run_id_is_counted_up_in_a_dry_run(job, capsys, launch_home):
    (launch_home / "runs/mine").mkdir(parents=True)
    code, out, _ = run(capsys, "submit", job, "--dry-run", "--run-id", "mine")
    assert code == 0
    assert "run mine-2 on this machine" in out
