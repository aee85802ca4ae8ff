"""`launch data`, from the command line to what is printed and written."""

import json
import os
import subprocess
import sys

import pytest

from launcher.cli import main as launch_main
from trainer.cli import main

JOB = """name: shown
train:
  model: {path: %s}
  data: {sources: [{path: rows.jsonl}], max_length: 128, bad_rows: %s}
"""


def chat(answer):
    return {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": answer}]}


@pytest.fixture
def job(tmp_path, small_tokenizer_folder):
    """Writes a job over rows; its folder."""

    def write(rows, *, bad_rows="skip", path=small_tokenizer_folder):
        folder = tmp_path / "job"
        folder.mkdir()
        (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        (folder / "job.yaml").write_text(JOB % (path, bad_rows))
        return folder

    return write


def launch(*arguments, cwd):
    """The real command, in a process of its own."""
    env = dict(os.environ, HOME=str(cwd), XDG_CONFIG_HOME=str(cwd))
    argv = [sys.executable, "-m", "launcher.cli", "data", *arguments]
    return subprocess.run(argv, cwd=cwd, env=env, capture_output=True, text=True)


def test_people_see_all_stages_and_files_are_written_beside_them(job):
    folder = job([chat("one"), chat("")])
    beside = folder.parent  # paths are those of the shell, not of the job
    done = launch("job/job.yaml", "--html", "page.html", "--rejects", "out.jsonl", "--rows", "2", cwd=beside)
    assert done.returncode == 0, done.stderr
    assert "⟦one<|im_end|>⟧" in done.stdout and "\x1b" not in done.stdout
    assert "rows.jsonl:2: messages[1]: got an empty answer, expected text" in done.stdout
    assert "one epoch, on one process" in done.stdout
    assert (beside / "page.html").read_text().startswith("<!doctype html>")
    (rejected,) = [json.loads(line) for line in (beside / "out.jsonl").read_text().splitlines()]
    assert (rejected["line"], rejected["row"]) == (2, chat(""))
    assert sorted(path.name for path in beside.iterdir()) == ["job", "out.jsonl", "page.html"]


def test_bad_rows_end_the_command_with_their_places_and_print_nothing(job):
    folder = job([chat("one"), chat("")], bad_rows="error")
    done = launch("job.yaml", "--html", "page.html", cwd=folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "error: rows.jsonl:2: messages[1]: got an empty answer, expected text" in done.stderr
    assert "data.bad_rows: skip" in done.stderr and "Traceback" not in done.stderr
    assert not (folder / "page.html").exists()


@pytest.mark.parametrize("arguments", ["", "--dump 50"])
def test_a_closed_pipe_is_no_error(job, arguments):
    folder = job([chat(f"answer {number}") for number in range(50)])
    shell = f"'{sys.executable}' -m launcher.cli data job.yaml {arguments} | exec 0<&-; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], cwd=folder, capture_output=True, text=True)
    assert done.stdout == "141\n"
    assert "Error" not in done.stderr and "error" not in done.stderr


def run(capsys, *arguments):
    """Exit code, stdout, stderr of `launch ARGUMENTS` in this process."""
    with pytest.raises(SystemExit) as ended:
        launch_main(list(arguments))
    return ended.value.code, *capsys.readouterr()


def test_json_and_dump_exclude_each_other(job, capsys):
    code, out, err = run(capsys, "data", str(job([]) / "job.yaml"), "--json", "--dump", "1")
    assert (code, out) == (2, "")
    assert "--json, --dump: only one of the two can be given" in err


@pytest.mark.parametrize("arguments", [["--dump", "-1"], ["--rows", "many"], ["--html", "."]])
def test_wrong_usage_ends_with_2(job, capsys, arguments):
    code, out, _ = run(capsys, "data", str(job([]) / "job.yaml"), *arguments)
    assert (code, out) == (2, "")


@pytest.fixture
def trainer_data(tmp_path, capsys, small_tokenizer_folder):
    """Runs the trainer's half over rows in this process: exit code, stdout, stderr."""

    def go(rows, *arguments, max_length=128, model=small_tokenizer_folder):
        source, config = tmp_path / "rows.jsonl", tmp_path / "train.yaml"
        source.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"sources": [{"path": str(source)}], "max_length": max_length, "bad_rows": "skip"}
        config.write_text(json.dumps({"model": {"path": str(model)}, "data": data}))
        return main(["data", "--config", str(config), *arguments]), *capsys.readouterr()

    return go


def test_json_is_one_object_with_all_of_it(trainer_data):
    code, out, _ = trainer_data([chat("one"), chat("")], "--json")
    found = json.loads(out)
    assert code == 0 and out.count("\n") == 1
    assert set(found) == {
        "summary", "sources", "stages", "noted", "bad_rows", "reasons", "rows", "lengths", "epoch", "template",
        "problem",
    }  # fmt: skip
    assert found["rows"][0]["samples"][0]["labels"].count(-100) < len(found["rows"][0]["samples"][0]["input_ids"])
    assert found["lengths"]["histogram"][0]["samples"] == 1


def test_dump_prints_samples_alone_and_counts_on_stderr(trainer_data):
    code, out, err = trainer_data([chat("one"), chat("two")], "--dump", "1")
    (shown,) = [json.loads(line) for line in out.splitlines()]
    assert code == 0 and set(shown) == {"text", "input_ids", "labels"}
    assert "data: 2 rows read, 2 samples kept" in err and "packed into 1 rows" in err


def test_a_dump_of_nothing_prints_nothing(trainer_data):
    assert trainer_data([chat("one")], "--dump", "0")[:2] == (0, "")


def test_rows_too_long_for_max_length_are_shown_with_the_error(trainer_data):
    code, out, err = trainer_data([chat("long " * 200)], max_length=16)
    assert code == 78
    assert "encode: left out, longer than data.max_length" in out
    assert "error: data: none of the 1 rows can be trained on" in err and "max_length is too small" in err


def test_a_file_that_cannot_be_written_is_told_before_the_rows_are_read(trainer_data):
    code, out, err = trainer_data([chat("one")], "--html", "nowhere/page.html")
    assert (code, out) == (78, "")
    assert "--html: got nowhere/page.html, allowed: a file in a folder that exists" in err


def test_a_page_is_replaced_whole(trainer_data, tmp_path):
    (tmp_path / "page.html").write_text("old")
    code, _, err = trainer_data([chat("one")], "--html", str(tmp_path / "page.html"))
    assert code == 0 and f"written: {tmp_path / 'page.html'}" in err
    assert (tmp_path / "page.html").read_text().endswith("</html>\n")
    assert not list(tmp_path.glob(".page*"))


def test_rejects_are_an_empty_file_when_there_are_none(trainer_data, tmp_path):
    assert trainer_data([chat("one")], "--rejects", str(tmp_path / "out.jsonl"))[0] == 0
    assert (tmp_path / "out.jsonl").read_text() == ""


def test_a_folder_without_tokenizer_is_told(trainer_data, tmp_path):
    (tmp_path / "empty").mkdir()
    code, out, err = trainer_data([chat("one")], model=tmp_path / "empty")
    assert (code, out) == (78, "")
    assert "no tokenizer" in err


def test_a_model_to_be_made_has_no_tokenizer_yet(tmp_path, capsys):
    (tmp_path / "train.yaml").write_text(
        "model: {init: internlm2, lora: null, quantization: none}\ndata: {sources: [{path: x.jsonl}]}\n"
    )
    assert main(["data", "--config", str(tmp_path / "train.yaml")]) == 78
    assert "got a model without tokenizer" in capsys.readouterr().err
