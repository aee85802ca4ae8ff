"""`launch merge` on a real run, and what it says to mistakes; nothing is ever half-written."""

import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
from safetensors.torch import load_file, save_file

from launcher.runs.store import RunStore
from tests.records import a_run
from tests.trainer import apart_work, warm
from tests.trainer.conftest import QUICKSTART, REPO
from tests.trainer.merging import save_base, save_run, write_large
from trainer.checkpoints.checkpoint import Writers, seal
from trainer.checkpoints.results import describe, find_result
from trainer.cli import main
from trainer.errors import ConfigError, TrainError
from trainer.export.child_process import apart
from trainer.export.merge import make_plan
from trainer.export.part import new_folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny_base):
    """A QLoRA run from its own job folder, with relative paths; one that was told to keep a checkpoint."""
    folder = tmp_path_factory.mktemp("job")
    shutil.copytree(tiny_base, folder / "base")
    shutil.copy(QUICKSTART / "facts.jsonl", folder)
    run = warm.start(folder / "started", {
        "settings": {"seed": 7, "output_dir": str(folder / "outputs/tiny")},
        "model": {"path": str(folder / "base"), "gradient_checkpointing": False, "lora": {"r": 4, "dropout": 0.0}},
        "data": {"sources": [{"path": str(folder / "facts.jsonl")}], "max_length": 64},
        "optimizer": {"lr": 5.0e-2, "max_steps": 2, "batch_size": 8, "accumulation": 1, "deepspeed": None},
        "runtime": {"save_every": 1, "sample_prompts": []},
    })  # fmt: skip
    assert run.codes() == [0], run.text
    config = folder / "outputs/tiny/config.yaml"
    config.write_text(config.read_text().replace(f"{folder}/", ""))  # as the launcher writes it: relative
    return folder / "outputs/tiny"


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory, small_tokenizer_folder):
    folder = tmp_path_factory.mktemp("run")
    return save_run(folder / "out", save_base(folder / "base", "internlm2", small_tokenizer_folder))


def merge(*words):
    return main(["merge", *map(str, words)])


def left(folder):
    """What is in a folder, hidden or not."""
    return sorted(path.name for path in folder.iterdir())


def saved_run(home, output, **values):
    store = RunStore(home)
    store.claim("a")
    store.save(a_run(output_dir=output, **values))
    return store.folder("a")


def test_the_latest_run_is_merged_compared_and_written_for_llama_cpp(trained, launch):
    pytest.importorskip("gguf")
    (saved_run(launch.home, trained) / "exit_code").write_text("0\n")
    done = launch.run("merge", "--to", "served", "--gguf", "q8_0", timeout_s=240)
    assert done.returncode == 0, done.stderr
    assert "drift on 8 rows of the run's data" in done.stdout and "float32 on cpu" in done.stdout
    assert {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json",
            "chat_template.jinja", "served-q8_0.gguf"} <= set(left(launch.cwd / "served"))  # fmt: skip
    assert left(launch.cwd) == ["served"]
    again = launch.run("merge", "a", "--to", "served")
    assert again.returncode == 2
    assert f"got {launch.cwd / 'served'}, which is there already, allowed: a new or an empty folder" in again.stderr


def test_a_checkpoint_is_merged_and_the_adapter_converted(trained, tmp_path, capsys):
    plans = [make_plan(describe(find_result(folder)), "auto") for folder in (trained / "checkpoint-2", trained)]
    last, result = (plan.weights["model.layers.1.mlp.up_proj.weight"].whole() for plan in plans)
    assert last.equal(result)
    first = make_plan(describe(find_result(trained / "checkpoint-1")), "auto")
    assert not first.weights["model.layers.1.mlp.up_proj.weight"].whole().equal(result)
    assert merge(trained, "--to", tmp_path / "adapter", "--adapter-only", "--layout", "internlm2") == 0
    assert left(tmp_path / "adapter") == ["adapter_config.json", "adapter_model.safetensors"]
    assert "wqkv" in json.loads((tmp_path / "adapter/adapter_config.json").read_text())["target_modules"]
    capsys.readouterr()


def test_a_run_that_goes_on_is_not_merged(trained, launch):
    import fcntl

    folder = saved_run(launch.home, trained)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = launch.run("merge", "a", "--to", "served")
    assert done.returncode == 2
    assert "a: the run is running; only one that has ended can be merged" in done.stderr
    assert left(launch.cwd) == []


def test_a_run_whose_output_is_elsewhere_is_told(launch):
    saved_run(launch.home, "/nowhere/x", backend="slurm")
    done = launch.run("merge", "a", "--to", "served")
    assert done.returncode == 3
    assert "a: its output is in /nowhere/x, which cannot be reached from here" in done.stderr


def drop(run):
    shutil.rmtree(run / "adapter")


def still_training(run):
    drop(run)
    (run / "checkpoint-10").mkdir()
    (run / "checkpoint-30").mkdir()


def cut_adapter(run):
    path = run / "adapter/adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])


def poison(run):
    (run / "config.yaml").write_text("model: [")


def lose_b(run):
    path = run / "adapter/adapter_model.safetensors"
    low = load_file(path)
    save_file({name: low[name] for name in low if not name.endswith("layers.0.mlp.up_proj.lora_B.weight")}, path)


def lose_base(run):
    config = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(config.replace("/base\n", "/gone\n"))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (drop, "neither adapter/ nor model/: the run is still training, or was stopped"),
        (still_training, "or take its newest checkpoint: {run}/checkpoint-30"),
        (cut_adapter, "adapter_model.safetensors: weight base_model.model"),
        (poison, "config.yaml: cannot be read"),
        (lose_b, "adapter_model.safetensors has no model.layers.0.mlp.up_proj.lora_B.weight"),
        (lose_base, "model.path: got"),
        (shutil.rmtree, "no such folder"),
        (lambda run: (run / "config.yaml").unlink(), "got a folder without config.yaml"),
    ],
)
def test_a_run_that_cannot_be_merged_says_why(harm, words, run_folder, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    harm(run)
    assert merge(run, "--to", tmp_path / "new") == 78
    assert words.format(run=run) in capsys.readouterr().err
    assert not list(tmp_path.glob("*new*"))


def test_a_checkpoint_that_is_not_whole_is_told(run_folder, tmp_path, capsys):
    run = tmp_path / "run"
    shutil.copytree(run_folder, run)
    checkpoint = run / "checkpoint-3"
    (run / "adapter").rename(checkpoint)
    assert merge(checkpoint, "--to", tmp_path / "new") == 78
    assert "checkpoint-3: it was not written to the end" in capsys.readouterr().err
    seal(checkpoint, Writers(1, 8, False))
    (checkpoint / "adapter_config.json").write_text("{}")
    assert merge(checkpoint, "--to", tmp_path / "new") == 78
    assert "adapter_config.json has 2 bytes, written were" in capsys.readouterr().err


def test_a_pissa_checkpoint_is_refused_and_its_result_taken(tmp_path, small_tokenizer_folder, capsys):
    base = save_base(tmp_path / "base", "internlm2", small_tokenizer_folder)
    run = save_run(tmp_path / "out", base, lora={"init": "pissa"}, quantization="none")
    shutil.copytree(run / "adapter", run / "checkpoint-3")
    seal(run / "checkpoint-3", Writers(1, 8, False))
    assert merge(run / "checkpoint-3", "--to", tmp_path / "new") == 78
    assert f"hint:  merge the run's result: {run}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--layout", "auto", "--adapter-only"), "--layout: got auto with --adapter-only, allowed: llama or internlm2"),
        (("--layout", "llama", "--adapter-only", "--gguf"), "--adapter-only: got a run without adapter, or --gguf"),
        (("--layout", "internlm2", "--gguf"), "--gguf: got a model of type internlm2"),
    ],
)
def test_options_that_contradict_are_refused(words, told, run_folder, tmp_path, capsys):
    pytest.importorskip("gguf")
    assert merge(run_folder, "--to", tmp_path / "new", *words) == 78
    assert told in capsys.readouterr().err
    assert left(tmp_path) == []


@pytest.mark.parametrize(("kind", "code"), [("file", 78), ("full", 78), ("empty", 0), ("orphan", 78)])
def test_only_a_new_or_an_empty_folder_is_written(kind, code, run_folder, tmp_path, capsys):
    target = tmp_path / "deep/new" if kind == "orphan" else tmp_path / "new"
    if kind == "file":
        target.write_text("mine")
    elif kind != "orphan":
        target.mkdir()
    if kind == "full":
        (target / "mine").write_text("mine")
    with new_folder(target) if code == 0 else pytest.raises(ConfigError, match="--to: got") as part:
        if code:
            assert merge(run_folder, "--to", target) == code
            raise ConfigError(capsys.readouterr().err)
        (part / "x").write_text("x")
    assert left(tmp_path) == {"file": ["new"], "full": ["new"], "empty": ["new"], "orphan": []}[kind]
    assert not code or kind == "orphan" or (target if kind == "file" else target / "mine").read_text() == "mine"


def test_what_a_killed_merge_has_left_goes_and_a_living_ones_stays(tmp_path):
    (tmp_path / ".new.part/inner").mkdir(parents=True)
    (tmp_path / ".new.part/model.safetensors").write_text("half")
    with new_folder(tmp_path / "new") as part:
        assert left(part) == []
        with pytest.raises(ConfigError, match="another process is writing there"), new_folder(tmp_path / "new"):
            pass
        (part / "whole").touch()
    assert left(tmp_path) == ["new"] and left(tmp_path / "new") == ["whole"]


def test_too_little_room_is_told_before_anything_is_written(tmp_path):
    words = r"--to: 1000000000\.0 GB are to be written"
    with pytest.raises(ConfigError, match=words), new_folder(tmp_path / "n", 10**18):
        pass
    assert left(tmp_path) == []


def test_a_full_disk_leaves_nothing(run_folder, tmp_path):
    """The weights take 270 kB."""
    limit, words = 60_000, [sys.executable, "-m", "trainer.cli", "merge", run_folder, "--to", tmp_path / "new"]
    done = subprocess.run(words, cwd=REPO, capture_output=True, text=True, timeout=240,
                          preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)))  # fmt: skip
    assert done.returncode == 1
    words = rf"error: {tmp_path / 'new'}: cannot be written: .*; nothing was left there\nhint:  make room"
    assert re.search(words, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "error",
    [
        OSError(28, "No space left on device"),
        OSError("76800 requested and 61760 written"),  # numpy
        Exception("No space left on device (os error 28)"),  # a library in Rust
    ],
)
def test_a_disk_that_is_full_later_leaves_nothing(error, tmp_path):
    with pytest.raises(TrainError, match=r"cannot be written: .*; nothing was left there") as told:
        fail_within(tmp_path / "new", error)
    assert told.value.hint == "make room, then merge again"
    assert left(tmp_path) == []


def fail_within(target, error):
    with new_folder(target) as part:
        (part / "half").touch()
        raise error


def test_ctrl_c_leaves_nothing(launch, tmp_path):
    output = write_large(tmp_path / "large", 24, 2**26)
    begun = launch.start("merge", str(output), "--to", "new", "--no-check", start_new_session=True)
    part = launch.cwd / ".new.part"
    deadline = time.monotonic() + 120
    while not part.exists() and time.monotonic() < deadline and begun.poll() is None:
        time.sleep(0.005)
    os.killpg(begun.pid, signal.SIGINT)
    _, told = begun.communicate(timeout=120)
    assert begun.returncode == 130, told
    assert "stopped: nothing was left at" in told and "Traceback" not in told
    assert left(launch.cwd) == []


def test_the_comparison_that_is_killed_is_told():
    with pytest.raises(TrainError, match="ended with -9 without a word") as told:
        apart(apart_work.die)
    assert told.value.hint == "merge with --no-check"


def test_errors_of_the_comparison_arrive_as_they_are():
    with pytest.raises(ConfigError, match="words") as told:
        apart(apart_work.refuse)
    assert told.value.hint == "a hint"
