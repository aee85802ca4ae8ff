"""Every job file in tests/data/bad gives exactly the message beside it, and exit code 2.

NAME.yaml is the job, NAME.expected its stderr, NAME.args (where there is one) more arguments.
"""

import json
import shlex
from pathlib import Path

import pytest

from launcher.cli import main

BAD = Path(__file__).parent.parent / "data/bad"
NAMES = sorted(path.stem for path in BAD.glob("*.expected"))


@pytest.fixture(autouse=True)
def _in_the_folder(monkeypatch):
    monkeypatch.chdir(BAD)


def outcome(command, name, capsys):
    """Exit code, stdout and stderr of `launch COMMAND NAME.yaml`."""
    more = BAD / f"{name}.args"
    words = shlex.split(more.read_text()) if more.exists() else []
    with pytest.raises(SystemExit) as ended:
        main([command, f"{name}.yaml", "--clusters", "../clusters.yaml", *words])
    return ended.value.code, *capsys.readouterr()


def expected(name):
    """The message, with the places filled in."""
    text = (BAD / f"{name}.expected").read_text().replace("{file}", f"{name}.yaml")
    return text.replace("{clusters}", "../clusters.yaml").replace("{folder}", str(BAD))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("command", ["validate", "render", "submit"])
def test_bad_job_gives_its_message(command, name, capsys):
    assert outcome(command, name, capsys) == (2, "", expected(name))


def test_every_bad_job_has_a_message():
    assert {path.stem for path in BAD.glob("*.yaml")} <= set(NAMES)
    assert len(NAMES) >= 30


def test_messages_are_told_apart():
    """No two files test the same thing."""
    texts = [(BAD / f"{name}.expected").read_text() for name in NAMES]
    assert len(set(texts)) == len(texts)


def test_json_lists_the_problems(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["validate", "several.yaml", "--json", "--clusters", "../clusters.yaml"])
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert ended.value.code == 2
    assert ["error: " + problem for problem in problems] == expected("several").splitlines()


def test_the_missing_file_is_missing():
    assert not (BAD / "missing_file.yaml").exists()
