"""Stopped anywhere, a run goes on as if it had never stopped: the same rows, the same losses; and what else is promised
of checkpoints and signals. Real training of a tiny model on the CPU."""

import json
import math
import re
import resource
import shutil
import signal
import socket
import time

import pytest

from tests.trainer import warm
from tests.trainer.conftest import QUICKSTART
from trainer.checkpoints.checkpoint import checkpoint_step, newest_valid
from trainer.config.job import MARKER, TrainConfig
from trainer.data.cache import DataCache
from trainer.data.recognise import with_template
from trainer.data.store import ids_of
from trainer.models.tokenizer import load_tokenizer

STEPS = 7


def job(folder, base=None, **changes):
    """Sixty rows, sixteen a step for one rank and for two: an epoch ends within the fourth step."""
    model = {"path": str(base), "quantization": "none", "lora": {"r": 4, "dropout": 0.3}} if base else {
        "init": "internlm2", "quantization": "none", "lora": None,
        "shape": {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
                  "vocab_size": 400, "max_positions": 64}}
    sections = {
        "settings": {"seed": 7, "output_dir": str(folder / "out")},
        "model": {"dtype": "fp32", "gradient_checkpointing": False, **model},
        "data": {"sources": [{"path": str(QUICKSTART / "facts.jsonl"), "format": "messages"}], "max_length": 64,
                 "pack": False},
        "optimizer": {"lr": 1.0e-2, "max_steps": STEPS, "batch_size": 8, "accumulation": 2},
        "runtime": {"log_every": 1, "save_every": 100, "eval_every": 100, "sample_prompts": [], "log_rows": True},
    }
    return warm.changed(sections, changes)


def metrics(folder):
    return [json.loads(line) for line in (folder / "out/metrics.jsonl").read_text().splitlines()]


def measured(folder):
    return {row["step"]: (row["loss"], row["grad_norm"], row["lr"]) for row in metrics(folder)}


def checkpoints(folder):
    return sorted(path.name for path in (folder / "out").glob("checkpoint-*"))


@pytest.fixture
def base(tiny_base):
    """A tiny base model, for adapters."""
    return tiny_base


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_resumed_run_sees_the_rows_it_would_have_seen(base, tmp_path, ranks):
    """From the middle of an epoch over its border, and from a step that has rows of two epochs."""
    changes = {"runtime__save_every": 2, "runtime__keep": 9, "optimizer__batch_size": 8 // ranks}
    whole = tmp_path / "whole"
    run = warm.start(whole, job(whole, base, **changes), ranks)
    assert run.codes() == [0] * ranks, run.text
    assert sorted(run.rows()) == list(range(1, STEPS + 1))
    assert checkpoints(whole) == [f"checkpoint-{step}" for step in (2, 4, 6, 7)]
    for step in (2, 4):
        part = warm.stopped_at(whole, tmp_path / f"from-{step}", step)
        again = warm.start(part, job(part, base, **changes), ranks)
        assert again.codes() == [0] * ranks, again.text
        assert again.rows() == {number: rows for number, rows in run.rows().items() if number > step}
        assert measured(part) == {number: found for number, found in measured(whole).items() if number > step}


def test_another_number_of_ranks_goes_on_with_the_remaining_rows(base, tmp_path):
    """With the same rows a step; without DeepSpeed, which splits its state over the ranks."""
    two = {"runtime__save_every": 3, "runtime__keep": 9, "optimizer__batch_size": 4, "optimizer__deepspeed": None}
    run = warm.start(tmp_path, job(tmp_path, base, **two), 2)
    assert run.codes() == [0, 0], run.text
    wanted = by_step(run)
    shutil.rmtree(tmp_path / "out/checkpoint-7")
    shutil.rmtree(tmp_path / "out/checkpoint-6")
    (tmp_path / "out/finished.json").unlink()
    alone = warm.start(tmp_path, job(tmp_path, base, **{**two, "optimizer__batch_size": 8}))
    assert alone.codes() == [0], alone.text
    assert "resuming from" in alone.text
    assert by_step(alone) == {step: rows for step, rows in wanted.items() if step > 3}


def by_step(run):
    """The rows of each step, on whatever rank."""
    return {step: sorted(row for rows in ranks.values() for row in rows) for step, ranks in run.rows().items()}


# Without DeepSpeed, whose ranks wait for each other by spinning: slow where others use the cores too.
LONG = {"optimizer__max_steps": 40, "optimizer__batch_size": 4, "optimizer__deepspeed": None}


def saved_step(folder):
    checkpoint, problems = newest_valid(folder / "out")
    assert problems == []
    assert not (folder / "out/.saving").exists()
    return checkpoint_step(checkpoint) if checkpoint else 0


def wait_until(run, holds):
    deadline = time.monotonic() + warm.PATIENCE_S
    while not holds():
        assert time.monotonic() < deadline and run.processes[0].is_alive(), run.text
        time.sleep(0.001)


def test_told_to_stop_at_any_moment_a_run_saves_and_loses_nothing(tmp_path):
    """Two ranks, one of them told: while it loads, in a step, while it answers, in a save (twice)."""
    whole = tmp_path / "whole"
    uninterrupted = warm.start(whole, job(whole, **LONG), 2)
    folder = tmp_path / "stopped"
    trained = {}

    def go_on(**changes):
        return warm.start(folder, job(folder, **LONG, **changes), 2)

    def stopped(run, said):
        assert run.codes() == [75, 75], run.text
        assert said in run.text
        assert "Traceback" not in run.text and "frame #" not in run.text, run.text
        for step, rows in run.rows().items():
            assert step not in trained
            trained[step] = rows
        assert saved_step(folder) == len(trained)

    run = go_on()
    run.wait_for("^data: ")
    run.tell(signal.SIGTERM, rank=0)
    stopped(run, "error: told to stop before the first step: nothing to save")

    run = go_on()
    run.wait_for("^step 2/")
    run.tell(signal.SIGUSR1, rank=1)
    stopped(run, "error: told to stop: saved at step")

    run = go_on(runtime__eval_every=1, runtime__sample_prompts=["Who?"],
                runtime__sampling={"temperature": 0, "max_new_tokens": 2**17})
    run.wait_for("^step ")
    run.tell(signal.SIGTERM, rank=0)
    stopped(run, "error: told to stop: saved at step")

    run = go_on(runtime__save_every=1)
    wait_until(run, (folder / "out/.saving").exists)
    run.tell(signal.SIGTERM, rank=0)
    run.tell(signal.SIGUSR1, rank=0)
    stopped(run, "error: told to stop: saved at step")

    run = go_on()
    assert run.codes() == [0, 0], run.text
    assert uninterrupted.codes() == [0, 0], uninterrupted.text
    assert {**trained, **run.rows()} == uninterrupted.rows()
    assert measured(folder) == measured(whole)


def poison(base, folder, config, commonest):
    """A copy of the base in which one token's embedding is not a number: one that is in all samples, or in one."""
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(base, folder)
    cache = DataCache(folder.parent / "cache", print)
    tokenizer = load_tokenizer(str(base))
    samples = cache.samples(with_template(TrainConfig.model_validate(config), tokenizer)[0], tokenizer)
    found = {token: sum(token in ids_of(sample) for sample in samples) for token in range(400)}
    token = next(token for token, count in found.items() if count == (len(samples) if commonest else 1))
    weights = load_file(folder / "model.safetensors")
    weights["model.tok_embeddings.weight"][token] = torch.nan
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return [samples.place(number) for number, sample in enumerate(samples) if token in ids_of(sample)]


@pytest.mark.parametrize("deepspeed", [{"zero_stage": 2}, None])
def test_a_step_that_is_not_finite_changes_nothing_and_is_not_saved(base, tmp_path, deepspeed):
    config = job(tmp_path, tmp_path / "bad", runtime__save_every=1, runtime__keep=9, optimizer__deepspeed=deepspeed,
                 optimizer__max_steps=4)
    poison(base, tmp_path / "bad", config, commonest=False)
    run = warm.start(tmp_path, config)
    assert run.codes() == [0], run.text
    [bad] = [row["step"] for row in metrics(tmp_path) if row["loss"] is None]
    assert re.search(rf"^step {bad}/4  .*  loss nan  ", run.text, re.M)
    assert checkpoints(tmp_path) == [f"checkpoint-{step}" for step in range(1, 5) if step != bad]
    assert all(math.isfinite(row["loss"]) for row in metrics(tmp_path) if row["step"] != bad)


def test_steps_in_a_row_that_are_not_finite_end_with_70_and_name_their_samples(base, tmp_path):
    config = job(tmp_path, tmp_path / "bad", runtime__save_every=1, optimizer__batch_size=4)
    origins = poison(base, tmp_path / "bad", config, commonest=True)
    run = warm.start(tmp_path, config, 2)
    assert run.codes() == [70, 70], run.text
    path = tmp_path / "out/diverged.json"
    assert "error: step 3: loss or gradient is not a number, 3 steps in a row; the samples of these" in run.text
    assert f"are listed in {path}" in run.text
    assert "Traceback" not in run.text
    steps = json.loads(path.read_text())["steps"]
    for one in steps:
        for rank in one["ranks"]:
            assert rank["loss"] == "nan"
            assert [str(row["row"]) for row in rank["rows"]] == run.rows()[one["step"]][rank["rank"]]
            assert {sample for row in rank["rows"] for sample in row["samples"]} <= set(origins)
    assert [one["step"] for one in steps] == [1, 2, 3]
    assert checkpoints(tmp_path) == []


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_run_without_one_good_step_ends_with_70_and_leaves_no_result(base, tmp_path, ranks):
    """Fewer steps than max_bad_steps."""
    config = job(tmp_path, tmp_path / "bad", optimizer__max_steps=2, optimizer__batch_size=8 // ranks)
    poison(base, tmp_path / "bad", config, commonest=True)
    run = warm.start(tmp_path, config, ranks)
    assert run.codes() == [70] * ranks, run.text
    assert "error: step 2: loss or gradient is not a number, in every step of this run" in run.text
    assert [one["step"] for one in json.loads((tmp_path / "out/diverged.json").read_text())["steps"]] == [1, 2]
    assert not (tmp_path / "out/adapter").exists() and checkpoints(tmp_path) == []


def test_bad_steps_at_the_end_cost_nothing_of_the_good_ones_and_are_said(base, tmp_path):
    config = job(tmp_path, tmp_path / "bad", runtime__save_every=1, runtime__keep=9)
    poison(base, tmp_path / "bad", config, commonest=False)
    [bad] = [row["step"] for row in measured_by(tmp_path, config) if row["loss"] is None][:1]
    shutil.rmtree(tmp_path / "out")
    config["optimizer"]["max_steps"] = bad
    run = warm.start(tmp_path, config)
    assert run.codes() == [0], run.text
    assert f"warning: the loss or gradient of the last 1 step(s) is not a number: they changed nothing, and the " \
           f"result is that of step {bad - 1}" in run.text  # fmt: skip
    assert (tmp_path / "out/adapter/adapter_model.safetensors").exists()


def measured_by(folder, config):
    """The rows of metrics.jsonl of a whole run."""
    run = warm.start(folder, config)
    assert run.codes() == [0], run.text
    return metrics(folder)


def test_a_save_that_does_not_fit_leaves_the_older_ones_valid(tmp_path):
    config = job(tmp_path, runtime__save_every=20, optimizer__max_steps=60)
    run = warm.start(tmp_path, config)
    wait_until(run, (tmp_path / "out/checkpoint-20").exists)
    resource.prlimit(run.processes[0].pid, resource.RLIMIT_FSIZE, (100_000, 100_000))  # the weights are larger
    assert run.codes() == [1], run.text
    assert "could not be saved: " in run.text and "Traceback" not in run.text
    good, problems = newest_valid(tmp_path / "out")
    assert good is not None and problems == []
    assert (tmp_path / "out/.saving").exists()
    again = warm.start(tmp_path, config)
    assert again.codes() == [0], again.text
    assert f"resuming from {good}" in again.text
    assert saved_step(tmp_path) == 60


def test_a_killed_rank_is_named_by_the_other(tmp_path):
    run = warm.start(tmp_path, job(tmp_path, **{**LONG, "optimizer__max_steps": 100_000}), 2)
    run.wait_for("^step 3/")
    run.tell(signal.SIGKILL, rank=1)
    assert run.codes() == [1, -signal.SIGKILL]
    assert f"error: rank 1 on host {socket.gethostname()} is gone (no sign of life for " in run.text
    assert "Traceback" not in run.text


NAMED = {"LAUNCH_RUN_ID": "first-1"}


def test_a_second_training_in_the_same_folder_is_refused_and_harms_nothing(tmp_path):
    """The same job twice at once: on one rank and on two, where the other rank ends with rank 0."""
    config = job(tmp_path, **{**LONG, "optimizer__max_steps": 100_000, "runtime__save_every": 5})
    first = warm.start(tmp_path, config, **NAMED)
    first.wait_for("^step 2/")
    for ranks, codes in ((1, [78]), (2, [78, 1])):
        second = warm.start(tmp_path, config, ranks, LAUNCH_RUN_ID="second-1")
        assert second.codes() == codes, second.text
        assert f"got {tmp_path}/out, where run first-1 (process {first.processes[0].pid} on host " in second.text
        assert "Traceback" not in second.text
    first.tell()
    assert first.codes() == [75], first.text
    steps = [row["step"] for row in metrics(tmp_path)]
    assert steps == list(range(1, len(steps) + 1)) and saved_step(tmp_path) == steps[-1]
    assert not list((tmp_path / "out").glob(".launch-run.lock*"))


def test_a_run_that_loses_its_folder_ends_before_it_writes_again(tmp_path):
    config = job(tmp_path, **{**LONG, "optimizer__max_steps": 100_000, "runtime__save_every": 10_000})
    run = warm.start(tmp_path, config)
    run.wait_for("^step 2/")
    (tmp_path / "out/.launch-run.lock").unlink()
    assert run.codes() == [1], run.text
    assert "the lock of this run was removed; nothing more is written" in run.text and "Traceback" not in run.text
    assert checkpoints(tmp_path) == []


def test_a_killed_runs_folder_is_taken_over_at_once_and_said(tmp_path):
    config = job(tmp_path)
    run = warm.start(tmp_path, {**config, "optimizer": {**config["optimizer"], "max_steps": 100_000}}, **NAMED)
    run.wait_for("^step 2/")
    run.kill()
    run.codes()
    again = warm.start(tmp_path, config)
    assert again.codes() == [0], again.text
    assert "run first-1 (process " in again.text and "is gone without an end; this run takes over" in again.text
    assert [row["step"] for row in metrics(tmp_path)] == list(range(1, STEPS + 1))


@pytest.mark.parametrize("ranks", [1, 2])
def test_what_was_trained_already_is_said_and_no_model_is_loaded(tmp_path, ranks):
    config = job(tmp_path, optimizer__batch_size=8 // ranks)
    run = warm.start(tmp_path, config, ranks, **NAMED)
    assert run.codes() == [0] * ranks, run.text
    before = {path: path.read_bytes() for path in (tmp_path / "out/model").rglob("*")}
    again = warm.start(tmp_path, config, ranks, LAUNCH_RUN_ID="second-1")
    assert again.codes() == [0] * ranks, again.text
    assert f"nothing is left to train: run first-1 has written {tmp_path}/out/model" in again.text
    assert "model: " not in again.text.replace("/model; ", "") and "data: " not in again.text
    assert {path: path.read_bytes() for path in (tmp_path / "out/model").rglob("*")} == before
    assert json.loads((tmp_path / "out/finished.json").read_text()) == {"run": "first-1", "nothing_left": "second-1"}
    assert json.loads((tmp_path / "out" / MARKER).read_text())["run"] == "first-1"
    assert not list((tmp_path / "out").glob(".launch-run.lock*"))


@pytest.mark.parametrize("deepspeed", [True, False])
def test_a_finished_run_goes_on_to_more_steps_under_the_schedule_of_all_of_them(base, tmp_path, deepspeed):
    """Its next step has the rows and the rate that it has in a run which was that long from the start; the rate of the
    shorter schedule's end, which is 0, would change nothing."""
    plain = {} if deepspeed else {"optimizer__deepspeed": None}
    longer = {**plain, "optimizer__max_steps": STEPS + 1}
    whole = tmp_path / "whole"
    run = warm.start(whole, job(whole, base, **longer))
    short = warm.start(tmp_path, job(tmp_path, base, **plain), **NAMED)
    assert (run.codes(), short.codes()) == ([0], [0]), run.text + short.text
    adapter = tmp_path / "out/adapter/adapter_model.safetensors"
    before = adapter.read_bytes()
    more = warm.start(tmp_path, job(tmp_path, base, **longer), LAUNCH_RUN_ID="second-1")
    assert more.codes() == [0], more.text
    assert f"the cosine schedule now spans {STEPS + 1} steps instead of {STEPS}, and goes on" in more.text
    assert more.rows() == {STEPS + 1: run.rows()[STEPS + 1]}
    assert measured(tmp_path)[STEPS + 1][2] == measured(whole)[STEPS + 1][2] > 0
    assert adapter.read_bytes() != before
    assert json.loads((tmp_path / "out/finished.json").read_text()) == {"run": "second-1"}
    assert json.loads((tmp_path / "out" / MARKER).read_text())["run"] == "second-1"


def test_more_epochs_are_more_steps_and_fewer_than_were_trained_are_refused(tmp_path):
    by_epochs = {"optimizer__max_steps": None, "optimizer__deepspeed": None}
    assert warm.start(tmp_path, job(tmp_path, **by_epochs, optimizer__epochs=1), **NAMED).codes() == [0]
    more = warm.start(tmp_path, job(tmp_path, **by_epochs, optimizer__epochs=2), **NAMED)
    assert more.codes() == [0], more.text
    assert "the cosine schedule now spans 7 steps instead of 4" in more.text
    fewer = warm.start(tmp_path, job(tmp_path, **by_epochs, optimizer__epochs=1), LAUNCH_COMMAND="launch local j.yaml")
    assert fewer.codes() == [78], fewer.text
    assert "optimizer.epochs: got 1.0, which is 4 steps of these rows, but 7 are trained" in fewer.text
    assert "a new run in a folder of its own: launch local j.yaml --new" in fewer.text


def test_a_run_that_ends_before_its_first_step_leaves_the_folder_to_its_owner(tmp_path):
    """Killed while it loads, with more steps: what was trained is the first run's still, and the same command goes on.
    """
    assert warm.start(tmp_path, job(tmp_path), **NAMED).codes() == [0]
    before = {name: (tmp_path / "out" / name).read_bytes() for name in (MARKER, "config.yaml", "finished.json")}
    longer = job(tmp_path, optimizer__max_steps=STEPS + 1)
    run = warm.start(tmp_path, longer, LAUNCH_RUN_ID="second-1")
    run.wait_for("^data: ")
    run.kill()
    run.codes()
    assert {name: (tmp_path / "out" / name).read_bytes() for name in before} == before
    again = warm.start(tmp_path, longer, LAUNCH_RUN_ID="second-1")
    assert again.codes() == [0] and f"step {STEPS + 1}/{STEPS + 1}" in again.text, again.text
