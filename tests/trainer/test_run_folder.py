"""Whose an output folder is: what is refused untouched, who waits, who takes over."""

import json
import os
import shutil
import socket
import subprocess
import sys
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from tests.trainer.test_lock import Heart
from trainer.checkpoints.checkpoint import Writers, seal
from trainer.checkpoints.run_folder import LOCK, SEAL, RunFolder, is_own, own
from trainer.config.job import MARKER, TrainConfig, config_text
from trainer.errors import ConfigError, TrainError
from trainer.node.finish import mark_finished
from trainer.node.lock import Holder

RUN = {"LAUNCH_RUN_ID": "mine-1", "LAUNCH_JOB_NAME": "mine", "LAUNCH_COMMAND": "launch local job.yaml"}
OTHER = {**RUN, "LAUNCH_RUN_ID": "other-1"}
ELSEWHERE = replace(Holder.me("other-1", "7"), host="other-host", machine="another boot", mark="m1")


def config_of(output, **sections):
    values = {"settings": {"output_dir": str(output)}, "model": {"path": "owner/base"},
              "data": {"sources": [{"path": "rows.jsonl"}]}}  # fmt: skip
    for path, value in sections.items():
        section, field = path.split("__")
        values.setdefault(section, {})[field] = value
    return TrainConfig.model_validate(values)


@pytest.fixture(autouse=True)
def job_folder(tmp_path, monkeypatch):
    """Where the job runs, with its rows."""
    folder = tmp_path / "job"
    folder.mkdir()
    (folder / "rows.jsonl").write_text("{}\n")
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def output(tmp_path):
    return tmp_path / "out"


@pytest.fixture
def told():
    return []


@pytest.fixture
def folder(output, told):
    """Makes RunFolders, and gives them back."""
    made = []

    def make(environ=RUN, dead_s=60.0, path=output, **sections):
        made.append(RunFolder(config_of(path, **sections), environ, told.append, dead_s))
        return made[-1]

    yield make
    for one in made:
        one.release()


def checkpoint(output, step, *, sealed=True):
    path = output / f"checkpoint-{step}"
    path.mkdir(parents=True)
    (path / "adapter_model.safetensors").write_bytes(b"weights")
    if sealed:
        seal(path, Writers(1, 8, split=False))
    return path


def content(folder):
    """Every path below, with what it holds."""
    return {path: path.read_bytes() if path.is_file() else os.path.lexists(path) for path in folder.rglob("*")}


@contextmanager
def refused(folder, *words, output):
    """The folder is refused in these words, and is afterwards as it was."""
    before = content(output.parent)
    with pytest.raises(ConfigError) as found:
        yield
    assert content(output.parent) == before
    text = f"{found.value.message}\n{found.value.hint}"
    assert [word for word in words if word not in text] == [], text


def test_a_new_folder_gets_a_marker_and_a_lock_and_is_free_afterwards(folder, output):
    one = folder()
    one.claim()
    marker = json.loads((output / MARKER).read_text())
    assert marker.items() >= {"schema": 1, "run": "mine-1", "job": "mine", "host": socket.gethostname()}.items()
    assert marker["started"] and marker.keys() >= {"launch"}
    assert yaml.safe_load((output / "config.yaml").read_text())["model"]["path"] == "owner/base"
    assert json.loads((output / LOCK).read_text())["run"] == "mine-1"
    one.release()
    assert sorted(os.listdir(output)) == [MARKER, "config.yaml"]


@pytest.mark.parametrize("names", [(), ("lost+found",)])
def test_what_a_fresh_volume_holds_is_no_stranger(folder, output, names):
    output.mkdir()
    for name in names:
        (output / name).mkdir()
    folder().claim()


@pytest.mark.parametrize("resume", ["auto", "never"])
@pytest.mark.parametrize("config", [None, "[1, 2]", "hello", "", "model: x\nlora_rank: 8\n", "\0", "a: [\n"])
def test_the_folder_of_another_tool_is_refused_untouched(folder, output, resume, config):
    for step in (500, 1000):
        checkpoint(output, step, sealed=False)
    (output / "adapter").mkdir()
    (output / "adapter/adapter_model.safetensors").write_bytes(b"theirs")
    if config is not None:
        (output / "config.yaml").write_text(config)
    with refused(folder, "settings.output_dir: got ", "holds what launch has not written (adapter, checkpoint-1000, ",
                 "nothing was touched", "launch local job.yaml --new", output=output):
        folder(runtime__resume=resume).claim()


def test_many_strangers_are_counted(folder, output):
    output.mkdir()
    for number in range(9):
        (output / f"file-{number}").touch()
    with refused(folder, "(file-0, file-1, file-2, file-3, file-4, and 4 more)", output=output):
        folder().claim()


def test_checkpoints_alone_do_not_make_a_folder_ours(folder, output):
    checkpoint(output, 3)
    with refused(folder, "(checkpoint-3)", output=output):
        folder().claim()


def test_a_folder_from_before_there_were_markers_is_known_by_its_config(folder, output):
    checkpoint(output, 3)
    (output / "config.yaml").write_text(config_text(config_of(output).model_dump(mode="json")))
    own(output / "adapter")
    (output / "adapter" / SEAL).unlink()
    (output / "adapter/adapter_config.json").write_text("{}")
    one = folder()
    one.claim()
    assert not (output / MARKER).exists()
    one.take_over()
    assert is_own(output / "adapter") and (output / MARKER).exists()


@pytest.mark.parametrize("name", ["checkpoint-7", "adapter"])
def test_in_our_folder_what_others_wrote_under_our_names_is_refused(folder, output, name):
    folder().claim()
    (output / LOCK).unlink()
    (output / name).mkdir()
    (output / name / "weights").write_bytes(b"theirs")
    with refused(folder, f"in which launch has not written {name}", output=output):
        folder().claim()


def test_other_files_of_the_user_stay(folder, output):
    folder().claim()
    (output / LOCK).unlink()
    for name in ("notes.txt", "checkpoint-best", "model"):
        (output / name).mkdir()
        (output / name / "x").touch()
    folder().claim()
    assert (output / "notes.txt/x").exists() and (output / "model/x").exists()


@pytest.mark.parametrize("config", ["[1]", "hello", "model: 3"])
def test_a_broken_config_in_our_folder_is_told_in_words(folder, output, config):
    folder().claim()
    (output / LOCK).unlink()
    checkpoint(output, 3)
    (output / "config.yaml").write_text(config)
    with refused(folder, f"{output}/config.yaml: ", output=output):
        folder().claim()


def test_a_link_to_nothing_a_file_and_what_lies_below_one_are_refused(folder, output, tmp_path):
    output.symlink_to(tmp_path / "gone")
    with refused(folder, "is a link to something that does not exist", output=output):
        folder().claim()
    with refused(folder, f"{output} is a link to something that does not exist", output=output):
        folder(path=output / "sub").claim()
    output.unlink()
    output.write_text("x")
    with refused(folder, "which is a file", output=output):
        folder().claim()


@pytest.mark.parametrize("path", [".", "..", "../job"])
def test_the_jobs_own_folder_is_refused(folder, job_folder, path):
    with refused(folder, "which is the job's own folder, or one above it", output=job_folder):
        folder(path=Path(path)).claim()


@pytest.mark.parametrize(("sections", "words"), [
    ({"data__sources": [{"path": "all/rows.jsonl"}]}, "in which data.sources lies (all/rows.jsonl)"),
    ({"model__path": "all/base"}, "in which model.path lies (all/base)"),
    ({"data__image_dir": "all"}, "in which image_dir lies (all)"),
    ({"data__sources": [{"path": "."}]}, "which lies in data.sources (.), where all files are read as rows"),
])
def test_a_folder_that_holds_the_jobs_data_or_lies_in_it_is_refused(folder, job_folder, sections, words):
    (job_folder / "all/base").mkdir(parents=True)
    (job_folder / "all/rows.jsonl").touch()
    with refused(folder, words, output=job_folder / "all"):
        folder(path=Path("all"), **sections).claim()


def test_a_changed_configuration_is_refused_by_field_with_both_commands(folder, output):
    folder(OTHER).claim()
    (output / LOCK).unlink()
    folder(OTHER, optimizer__lr=1e-3).claim()  # nothing was trained yet
    (output / LOCK).unlink()
    checkpoint(output, 3)
    with refused(folder, "which holds run other-1", "  optimizer.lr: 0.001 -> 0.0005",
                 "a new run in a folder of its own: launch local job.yaml --new",
                 "launch local job.yaml --set train.optimizer.lr=0.001 --resume other-1", output=output):
        folder(optimizer__lr=5e-4).claim()
    folder(optimizer__lr=1e-3, optimizer__batch_size=2).claim()


def test_the_command_that_goes_on_sets_no_field_twice_and_the_refusal_says_how_the_first_was_started(folder, output):
    first = {**OTHER, "LAUNCH_COMMAND": "launch local job.yaml --set train.optimizer.lr=0.001"}
    folder(first, optimizer__lr=1e-3).claim()
    (output / LOCK).unlink()
    checkpoint(output, 3)
    typed = "launch local job.yaml --set name=x --set train.optimizer.lr=5e-4 --set train.settings.output_dir=o"
    with refused(folder, f"which holds run other-1 ({first['LAUNCH_COMMAND']})",
                 "other-1: launch local job.yaml --set name=x --set train.optimizer.lr=0.001 --resume other-1",
                 f"of its own: {typed} --new", output=output):
        folder({**RUN, "LAUNCH_COMMAND": typed}, optimizer__lr=5e-4).claim()


def test_another_length_is_no_change_unless_more_is_trained(folder, output):
    folder(OTHER, optimizer__max_steps=8).claim()
    (output / LOCK).unlink()
    checkpoint(output, 4)
    folder(optimizer__max_steps=8, optimizer__epochs=9).claim()  # max_steps alone counts
    (output / LOCK).unlink()
    for steps in (4, 6, 28, None):
        folder(optimizer__max_steps=steps).claim()
        (output / LOCK).unlink()
    typed = {**RUN, "LAUNCH_COMMAND": "launch local job.yaml --set train.optimizer.max_steps=3"}
    with refused(folder, "  optimizer.max_steps: 8 -> 3, but 4 steps are trained",
                 "launch local job.yaml --set train.optimizer.max_steps=8 --resume other-1", output=output):
        folder(typed, optimizer__max_steps=3).claim()
    shutil.rmtree(output / "checkpoint-4")
    mark_finished(output, OTHER)
    with refused(folder, "  optimizer.max_steps: 8 -> 28, and no checkpoint is left to go on from", output=output):
        folder(optimizer__max_steps=28).claim()


def test_a_folder_is_looked_at_without_being_touched(folder, output):
    folder().refuse_foreign()
    assert not output.exists()
    output.mkdir()
    (output / "notes.txt").touch()
    with refused(folder, "holds what launch has not written (notes.txt)", output=output):
        folder().refuse_foreign()


def test_a_foreign_folder_is_refused_before_torch_is_loaded(output, tmp_path):
    output.mkdir()
    (output / "notes.txt").touch()
    sections = config_of(output).model_dump(mode="json", exclude={"model": {"shape"}})
    (tmp_path / "c.yaml").write_text(config_text(sections))
    script = ("import os, sys; from trainer.cli import main; code = main(['train', '--config', sys.argv[1]]); "
              "sys.stderr.flush(); os._exit(code if not {'torch', 'transformers'} & set(sys.modules) else 1)")
    done = subprocess.run([sys.executable, "-P", "-c", script, tmp_path / "c.yaml"], capture_output=True, text=True)
    assert done.returncode == 78 and "holds what launch has not written (notes.txt)" in done.stderr, done.stderr


def test_never_refuses_what_was_trained_but_not_a_restart_of_the_same_run(folder, output):
    folder(OTHER, runtime__resume="never").claim()
    (output / LOCK).unlink()
    checkpoint(output, 3)
    with refused(folder, "runtime.resume: never, and something was trained there", output=output):
        folder(runtime__resume="never").claim()
    folder(OTHER, runtime__resume="never").claim()


def test_results_that_are_there_are_said_and_nothing_else_is_left(folder, output):
    one = folder(OTHER)
    one.claim()
    own(output / "adapter")
    (output / "adapter/adapter_config.json").write_text("{}")
    mark_finished(output, OTHER)
    assert one.finished() is None  # without weights
    (output / "adapter/adapter_model.safetensors").touch()
    assert one.finished() == f"nothing is left to train: run other-1 has written {output}/adapter; to start over: " \
                             "launch local job.yaml --new"  # fmt: skip
    assert folder(optimizer__max_steps=8).finished() is None
    one.release()
    with refused(folder, "optimizer.lr: 0.0002 -> 0.1", output=output):
        folder(optimizer__lr=0.1).claim()
    shutil.rmtree(output / "adapter")
    assert one.finished() is None


def locked(output, holder):
    """The folder of a run on another machine."""
    output.mkdir(exist_ok=True)
    (output / LOCK).write_text(json.dumps(asdict(holder)))


def test_a_second_run_is_refused_at_once_naming_the_first(folder, output):
    folder(OTHER).claim()
    words = ("where run other-1 (process ", f" on host {socket.gethostname()}, since ", "is training now",
             "wait for its end, or have launch make one: launch local job.yaml --new")  # fmt: skip
    with refused(folder, *words, output=output):
        folder(RUN).claim()


def test_the_same_id_from_another_machine_is_another_run(folder, output, told):
    """Machines that share a file system, but not their runs."""
    locked(output, replace(ELSEWHERE, run="mine-1", start="other-host"))
    with Heart(output / LOCK), pytest.raises(ConfigError, match=r"run mine-1 \(process .* on host other-host"):
        folder(RUN).claim()
    assert "waiting for a sign of life" in told[0]


def test_a_run_elsewhere_is_refused_once_it_shows_life(folder, output, told):
    locked(output, ELSEWHERE)
    with Heart(output / LOCK), pytest.raises(ConfigError, match=r"where run other-1 .*host other-host.* is training"):
        folder(RUN).claim()
    assert len(told) == 1 and "waiting for a sign of life" in told[0]


def test_the_silent_lock_of_another_run_is_taken_over_and_said(folder, output, told):
    locked(output, ELSEWHERE)
    folder(RUN, dead_s=0.5).claim()
    assert "run other-1 (process " in told[-1] and "is gone without an end; this run takes over" in told[-1]
    assert json.loads((output / LOCK).read_text())["run"] == "mine-1"


def test_a_restart_waits_for_its_earlier_start_to_be_silent(folder, output, told):
    slurm = {**RUN, "SLURM_JOB_ID": "7"}
    locked(output, replace(ELSEWHERE, run="mine-1", start="7"))

    def tell(line):
        told.append(line)
        heart.stopped.set()

    with Heart(output / LOCK) as heart:
        one = folder(slurm, dead_s=1.0)
        one.tell = tell
        one.claim()
    assert "waiting for the end of run mine-1" in told[0] and "takes over" in told[-1]


def test_a_restart_does_not_wait_for_ever(folder, output, monkeypatch):
    monkeypatch.setattr("trainer.checkpoints.run_folder.WAIT_S", 0.5)
    locked(output, replace(ELSEWHERE, run="mine-1", start="7"))
    with Heart(output / LOCK), pytest.raises(TrainError, match="an earlier start of this run, does not end"):
        folder({**RUN, "SLURM_JOB_ID": "7"}).claim()


def test_a_folder_that_cannot_be_written_is_told_in_words(folder, tmp_path):
    with pytest.raises(ConfigError, match="cannot be written: "):
        folder(path=Path("/proc/nothing/here")).claim()
