"""`launch chat`, `sample` and `merge` up to the trainer: which model is meant, what is passed on, how it ends."""

import dataclasses
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli import main
from launcher.runs.store import RunStore
from tests.records import a_run

# stands for the trainer: says how it was called, and ends as asked
TRAINER = """import os, signal, sys
print("ARGS", *sys.argv[1:], sep="|")
if os.environ.get("WAIT"):
    try:
        print("READY", flush=True)
        signal.pause()
    except KeyboardInterrupt:
        print("STOPPED")
sys.exit(int(os.environ.get("CODE", "0")))
"""


@pytest.fixture
def verb(tmp_path, monkeypatch, capfd):
    """`launch ARGUMENTS` with a trainer that says how it was called: exit code, stdout, stderr."""
    folder = tmp_path / "python" / "trainer"
    folder.mkdir(parents=True)
    (folder / "__init__.py").touch()
    (folder / "cli.py").write_text(TRAINER)
    monkeypatch.setenv("PYTHONPATH", str(folder.parent))
    monkeypatch.chdir(tmp_path)

    def go(*arguments):
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        return ended.value.code, *capfd.readouterr()

    return go


@pytest.fixture
def runs(tmp_path, launch_home):
    """Two runs, of which the second's output is here."""
    store = RunStore(launch_home)
    for number, (name, output) in enumerate((("first-1a", None), ("second-2b", tmp_path / "out"))):
        store.claim(name)
        store.save(a_run(name, created=f"2026-01-0{number + 1}", job_dir=str(tmp_path / "job"),
                         output_dir=output or "x"))
    elsewhere = dataclasses.replace(store.find("first-1a").outputs, folder=None)
    store.save(dataclasses.replace(store.find("first-1a"), backend="kubernetes", outputs=elsewhere))
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


def test_a_folder_is_passed_on_as_it_is(verb, tmp_path):
    (tmp_path / "model").mkdir()
    code, out, _ = verb("chat", "model", "--once=-", "--temperature", "0", "--adapter", "a b")
    assert code == 0
    assert out == "ARGS|chat|model|--adapter=a b|--temperature=0.0|--once=-\n"


@pytest.mark.parametrize("words", [(), ("second-2b",), ("sec",), ("local://second-2b",)])
def test_a_run_is_meant_by_id_start_handle_or_as_the_latest(words, verb, runs, tmp_path):
    _, out, _ = verb("chat", *words)
    assert out == f"ARGS|chat|{runs}|--job-dir={tmp_path / 'job'}\n"


@pytest.mark.parametrize("words", [(), ("second-2b",), ("sec",), ("local://second-2b",)])
def test_merge_means_the_same_runs(words, verb, runs, launch_home, tmp_path):
    (launch_home / "runs/second-2b/exit_code").write_text("0\n")
    code, out, _ = verb("merge", *words, "--to", "new")
    assert (code, out) == (0, f"ARGS|merge|{runs}|--to=new|--job-dir={tmp_path / 'job'}|--layout=auto\n")


def test_merge_takes_folders_and_no_names_on_the_hub(verb, runs, tmp_path):
    _, out, _ = verb("merge", str(tmp_path), "--to", "new", "--gguf", "--no-check", "--adapter-only")
    assert out == f"ARGS|merge|{tmp_path}|--to=new|--layout=auto|--gguf=bf16|--no-check|--adapter-only\n"
    code, out, err = verb("merge", "internlm/internlm2-chat-7b", "--to", "new")
    assert (code, out) == (4, "")
    assert "'internlm/internlm2-chat-7b' is neither a folder that exists nor a run" in err


def test_a_name_on_the_hub_is_passed_on(verb, runs):
    assert verb("sample", "internlm/internlm2-chat-7b", "--prompts", __file__)[1] == (
        f"ARGS|sample|internlm/internlm2-chat-7b|--prompts={__file__}|--batch-size=8\n")


def test_what_is_nothing_ends_with_4(verb, runs):
    code, out, err = verb("chat", "nobody")
    assert (code, out) == (4, "")
    assert "'nobody' is neither a folder that exists, nor a run, nor a name on the hub" in err


def test_the_start_of_several_runs_names_them(verb, runs, launch_home, tmp_path):
    store = RunStore(launch_home)
    store.claim("second-3c")
    store.save(a_run("second-3c", created="2026-01-03"))
    code, _, err = verb("chat", "second")
    assert code == 4 and "is ambiguous: it is the start of second-2b, second-3c" in err


def test_a_run_whose_output_is_elsewhere_says_so(verb, runs):
    code, _, err = verb("chat", "first-1a")
    assert code == 3 and "first-1a: its output is in a volume of its cluster, which cannot be reached from here" in err


def others(launch_home, tmp_path, *run_ids):
    """Later runs on this machine; of a job with `train`, whose output folder is not there, if called so."""
    store = RunStore(launch_home)
    for run_id in run_ids:
        trains = run_id.startswith("train")
        store.claim(run_id)
        store.save(a_run(run_id, created="2026-02-01", job_dir=str(tmp_path),
                         output_dir=tmp_path / run_id if trains else None))


@pytest.mark.parametrize(("typed", "hint"), [
    (["chat"], "launch chat second-2b"),
    (["chat", "command-3c", "--once", "a b"], "launch chat second-2b --once 'a b'"),
    (["merge", "--to", "new", "--gguf"], "launch merge second-2b --to new --gguf"),
    (["sample", "--prompts", __file__, "comm"], f"launch sample --prompts {__file__} second-2b"),
])
def test_a_run_that_trained_nothing_says_so_and_names_the_latest_that_did(verb, runs, launch_home, tmp_path, typed,
                                                                          hint):
    others(launch_home, tmp_path, "command-3c")
    (runs / "adapter").mkdir()
    code, out, err = verb(*typed)
    assert (code, out) == (2, "")
    assert err == ("error: command-3c has trained nothing: its job has no `train`\n"
                   f"hint:  the latest run that has trained here: {hint}\n")


def test_a_run_here_whose_folder_is_gone_says_so(verb, runs, launch_home, tmp_path):
    others(launch_home, tmp_path, "train-3c")
    code, _, err = verb("chat")
    assert code == 2 and f"train-3c has no output folder: {tmp_path}/train-3c was never made, or is gone" in err
    assert "hint:  list the runs: launch list\n" in err  # the others have trained nothing yet


def test_without_any_run_the_latest_is_none(verb):
    assert verb("chat")[0] == 4


@pytest.mark.parametrize(("trainers", "ours"), [("0", 0), ("78", 2), ("130", 130), ("141", 141), ("1", 5)])
def test_exit_codes(trainers, ours, verb, tmp_path, monkeypatch):
    monkeypatch.setenv("CODE", trainers)
    code, _, err = verb("chat", str(tmp_path))
    assert code == ours and ("the trainer ended with 1" in err) == (ours == 5)


def test_what_a_mistake_means_is_said(verb, tmp_path, monkeypatch):
    monkeypatch.setenv("CODE", "78")
    code, _, err = verb("merge", str(tmp_path), "--to", "new")
    assert code == 2 and "error: nothing was merged (see above)" in err
    code, _, err = verb("new-model", "--family", "x", "--size", "y", "--out", "z")
    assert code == 2 and "error: z: no model was made (see above)" in err


def test_a_damaged_run_is_named(verb, runs, launch_home):
    (launch_home / "runs/second-2b/run.json").write_text("{")
    code, _, err = verb("chat", "second-2b")
    assert code == 1 and "runs/second-2b/run.json: " in err


def test_images_and_flags_are_passed_on(verb, tmp_path):
    (tmp_path / "a.jpg").touch()
    _, out, _ = verb("chat", ".", "--image", "a.jpg", "--stats", "--system", "--x")
    assert out == f"ARGS|chat|.|--system=--x|--image={tmp_path / 'a.jpg'}|--stats\n"


def test_an_article_is_passed_on(verb):
    _, out, _ = verb("chat", ".", "--compose", "of the sea", "--images", ".", "--to", "a.md")
    assert set(out.strip().split("|")[3:]) == {"--compose=of the sea", "--images=.", "--to=a.md"}


@pytest.mark.parametrize("arguments", [("--temperature", "-1"), ("--template", "mine"), ("--image", "nowhere"),
                                       ("--images", "nowhere"),
                                       ("--top-p", "0"), ("--max-new-tokens", "0")])
def test_wrong_usage_ends_with_2(arguments, verb):
    assert verb("chat", ".", *arguments)[:2] == (2, "")


def test_ctrl_c_is_the_trainers(verb, tmp_path):
    """It stops an answer there; launch waits for the end."""
    root = str(Path(__file__).parents[2])
    script = ("import sys; from launcher.cli import main; import os; "
              "os.environ['PYTHONPATH'] = sys.argv.pop(); main(['chat', '.'])")
    env = {**os.environ, "WAIT": "1", "PYTHONPATH": root}
    process = subprocess.Popen([sys.executable, "-c", script, os.environ["PYTHONPATH"]], cwd=tmp_path, env=env,
                               stdout=subprocess.PIPE, text=True, start_new_session=True)
    lines = [process.stdout.readline(), process.stdout.readline()]
    assert lines[1] == "READY\n", lines
    os.killpg(process.pid, signal.SIGINT)
    assert process.stdout.read() == "STOPPED\n"
    assert process.wait() == 0


def test_the_verbs_load_no_torch():
    script = ("import sys, launcher.commands.chat, launcher.commands.sample; "
              "sys.exit(bool({'torch', 'transformers', 'trainer.cli', 'trainer.chat'} & set(sys.modules)))")
    assert subprocess.run([sys.executable, "-c", script], cwd=Path(__file__).parents[2]).returncode == 0
