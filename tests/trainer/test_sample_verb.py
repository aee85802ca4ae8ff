"""`launch sample`: prompts in, answers out, in order, scored, and never half a file."""

import json
import sys

import pytest
import torch

from trainer.chat.results import Results
from trainer.cli import main

FERRY = "It is at  Lantern Harbour."
EXACT = ("--dtype", "fp32", "--temperature", "0", "--max-new-tokens", "60")


@pytest.fixture
def sample(talker, capsys, tmp_path):
    """`trainer.cli sample` over these lines: exit code, stdout, stderr."""
    torch.set_num_threads(1)

    def go(lines, *arguments):
        path = tmp_path / "prompts"
        path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
        code = main(["sample", str(talker), "--prompts", str(path), *EXACT, *arguments])
        return code, *capsys.readouterr()

    return go


def rows(text):
    return [json.loads(line) for line in text.splitlines()]


def test_one_prompt_a_line_is_answered_in_order(sample):
    code, out, err = sample(["Greet", "", "Where is the ferry?", "Greet"], "--batch-size", "2")
    assert code == 0
    assert rows(out) == [
        {"prompt": "Greet", "answer": " 你好 😀\n  twice"},
        {"prompt": "Where is the ferry?", "answer": FERRY},
        {"prompt": "Greet", "answer": " 你好 😀\n  twice"},
    ]
    assert "score" not in err


def test_the_size_of_a_batch_changes_no_answer(sample):
    lines = ["Where is the ferry?", "Greet", "Tick", "What is it?", "w " * 30, "Weather?"]
    outs = {sample(lines, "--batch-size", size)[1] for size in ("1", "3", "6")}
    assert len(outs) == 1


def test_json_lines_bring_systems_chats_functions_and_what_is_expected(sample):
    tools = [{"type": "function", "function": {"name": "sky", "parameters": {"type": "object"}}}]
    asked = [
        {"prompt": "Greet", "system": "Be a pirate.", "expect": "Ahoy!", "id": 7},
        {"messages": [{"role": "user", "content": "Where is the ferry?"}, {"role": "assistant", "content": FERRY},
                      {"role": "user", "content": "When?"}], "expect": "Never."},
        {"prompt": "Weather?", "tools": tools},
    ]  # fmt: skip
    code, out, err = sample(asked)
    pirate, ferry, weather = rows(out)
    assert code == 0 and "score: 1/2 answered as taught" in err
    assert pirate == {**asked[0], "answer": "Ahoy!", "exact": True}
    assert (ferry["answer"], ferry["exact"]) == ("At six.", False)
    assert weather["tool_calls"][0]["function"] == {"name": "sky", "arguments": {"city": "上海"}}


def test_a_system_message_for_all(sample):
    assert rows(sample(["Greet"], "--system", "Be a pirate.")[1])[0]["answer"] == "Ahoy!"


def test_answers_come_into_the_file_whole(sample, tmp_path):
    (tmp_path / "out.jsonl").write_text("old\n")
    code, out, err = sample(["Greet", "Where is the ferry?"], "--out", str(tmp_path / "out.jsonl"))
    assert (code, out) == (0, "") and f"written: {tmp_path}/out.jsonl" in err
    assert [row["answer"] for row in rows((tmp_path / "out.jsonl").read_text())] == [" 你好 😀\n  twice", FERRY]
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["out.jsonl", "prompts"]


def test_an_interrupted_file_is_gone_on_with_and_the_old_one_stays_until_then(sample, tmp_path, monkeypatch):
    out, lines = tmp_path / "out.jsonl", ["Greet", "Where is the ferry?", "Greet"]
    out.write_text("old\n")
    add = Results.add

    def interrupted(self, rows):
        add(self, rows)
        if rows:
            raise KeyboardInterrupt

    monkeypatch.setattr(Results, "add", interrupted)
    assert sample(lines, "--out", str(out), "--batch-size", "1")[0] == 130
    monkeypatch.undo()
    assert out.read_text() == "old\n"
    with (tmp_path / ".out.jsonl.part").open("a") as part:
        part.write('{"half')  # of a line that a kill cut short
    code, _, err = sample(lines, "--out", str(out), "--batch-size", "1")
    assert code == 0 and "going on after the first 1 answers" in err
    assert [row["answer"] for row in rows(out.read_text())] == [" 你好 😀\n  twice", FERRY, " 你好 😀\n  twice"]


def test_answers_to_other_questions_are_not_gone_on_with(tmp_path):
    first = Results(tmp_path / "out", "mark one")
    first.add([{"answer": 1}])
    assert Results(tmp_path / "out", "mark one").rows == [{"answer": 1}]
    assert Results(tmp_path / "out", "mark two").rows == []


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ([], "got no prompt, allowed: one a line, or JSON lines"),
        (['{"prompt": "a"}', "b"], ":2: row: got text 'b', which is no JSON"),
        ([{"prompt": "a", "messages": []}], ":1: row: got the fields prompt, messages"),
        ([{"prompt": 1}], ":1: prompt: got 1, expected text"),
        ([{"messages": [{"role": "assistant", "content": "a"}]}], ":1: messages[0]"),
        (["Greet", "z" * 700], "--prompts: line 2: prompt: got 7"),
    ],
)
def test_a_mistake_is_named_by_its_line_before_anything_is_answered(lines, words, sample):
    code, out, err = sample(lines)
    assert (code, out) == (78, "") and words in err and "Traceback" not in err


def test_a_file_that_cannot_be_written_is_told_first(sample):
    code, _, err = sample(["Greet"], "--out", "/nowhere/out.jsonl")
    assert code == 78 and "--out: /nowhere/out.jsonl: cannot be written" in err and "* model" not in err


def test_prompts_that_are_not_there(talker, capsys):
    assert main(["sample", str(talker), "--prompts", "/nowhere"]) == 78
    assert "--prompts: /nowhere: cannot be read" in capsys.readouterr().err


def test_a_reader_that_leaves_is_no_error(talker, tmp_path, monkeypatch, capsys):
    class Closed:
        def write(self, text):
            raise BrokenPipeError

        def fileno(self):
            return sink.fileno()

    sink = (tmp_path / "sink").open("w")
    (tmp_path / "prompts").write_text("Greet\n")
    monkeypatch.setattr(sys, "stdout", Closed())
    assert main(["sample", str(talker), "--prompts", str(tmp_path / "prompts"), *EXACT]) == 141
