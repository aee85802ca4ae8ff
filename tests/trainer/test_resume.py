"""Stopped anywhere, a run goes on as if it had never stopped: the same rows, the same losses; and what else is promised
of checkpoints and signals. Real training of a tiny model on the CPU."""

import json
import shutil

import pytest

from tests.trainer import warm
from tests.trainer.conftest import QUICKSTART

STEPS = 7


def job(folder, base=None, **changes):
    """Fifty rows, sixteen a step for one rank and for two: an epoch is four steps, the last one shorter."""
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
    for path, value in changes.items():
        section, field = path.split("__")
        sections[section][field] = value
    return sections


def two_ranks(changes, ranks):
    return {**changes, "optimizer__batch_size": 16 // 2 // ranks}


def metrics(folder):
    return [json.loads(line) for line in (folder / "out/metrics.jsonl").read_text().splitlines()]


def measured(folder):
    return {row["step"]: (row["loss"], row["grad_norm"], row["lr"]) for row in metrics(folder)}


def checkpoints(folder):
    return sorted(path.name for path in (folder / "out").glob("checkpoint-*"))


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny base model, for adapters."""
    folder = tmp_path_factory.mktemp("base")
    run = warm.start(folder, job(folder, optimizer__max_steps=1))
    assert run.codes() == [0], run.text
    return folder / "out/model"


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_resumed_run_sees_the_rows_it_would_have_seen(base, tmp_path, ranks):
    """From the middle of an epoch over its border, and from the border."""
    changes = two_ranks({"runtime__save_every": 2, "runtime__keep": 9}, ranks)
    whole = tmp_path / "whole"
    run = warm.start(whole, job(whole, base, **changes), ranks)
    assert run.codes() == [0] * ranks, run.text
    assert sorted(run.rows()) == list(range(1, STEPS + 1))
    assert checkpoints(whole) == [f"checkpoint-{step}" for step in (2, 4, 6, 7)]
    for step in (2, 4):
        part = tmp_path / f"from-{step}"
        shutil.copytree(whole / "out" / f"checkpoint-{step}", part / "out" / f"checkpoint-{step}")
        again = warm.start(part, job(part, base, **changes), ranks)
        assert again.codes() == [0] * ranks, again.text
        assert again.rows() == {number: rows for number, rows in run.rows().items() if number > step}
        assert measured(part) == {number: found for number, found in measured(whole).items() if number > step}
