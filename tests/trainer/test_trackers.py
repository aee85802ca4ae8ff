"""Reports: which are made, where TensorBoard's go, and what is not in them."""

import importlib.util
import json
import shutil
import sys
from typing import get_args

import pytest

from tests.trainer import warm
from tests.trainer.test_resume import job
from trainer.config.job import TrackerName
from trainer.errors import ConfigError
from trainer.training.trackers import find_trackers


def test_names_are_those_of_transformers():
    from transformers.integrations.integration_utils import INTEGRATION_TO_CALLBACK

    assert set(get_args(TrackerName)) <= set(INTEGRATION_TO_CALLBACK)


def test_without_tensorboard_one_line_tells_unless_it_was_asked_for(monkeypatch):
    for name in ("tensorboard", "tensorboardX"):
        monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    told = []
    assert find_trackers(None, told.append) == []
    assert told == ["TensorBoard is not installed here (pip install tensorboard): training goes on without it"]
    with pytest.raises(ConfigError, match=r"runtime\.report_to: got tensorboard, which cannot be used here: "):
        find_trackers(["tensorboard"], told.append)


def test_a_report_that_was_asked_for_must_be_there():
    if importlib.util.find_spec("wandb"):
        pytest.skip("wandb is installed")
    with pytest.raises(ConfigError, match=r"got wandb, which cannot be used here: WandbCallback requires wandb"):
        find_trackers(["wandb"], print)


def scalars(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found = EventAccumulator(str(folder)).Reload()
    return {name: [event.step for event in found.Scalars(name)] for name in found.Tags()["scalars"]}


def test_rank_0_reports_every_step_once_over_a_resume_and_no_secret(tmp_path):
    pytest.importorskip("tensorboard")
    changes = {"runtime__save_every": 2, "runtime__keep": 9, "runtime__eval_every": 2, "optimizer__batch_size": 4,
               "optimizer__max_steps": 5, "optimizer__deepspeed": None, "data__validation": 0.1}
    secret = {"WANDB_API_KEY": "s3cr3t-of-mine", "HF_TOKEN": "s3cr3t-of-mine"}
    run = warm.start(tmp_path, job(tmp_path, **changes), 2, **secret)
    assert run.codes() == [0, 0], run.text
    folder = tmp_path / "out/tensorboard"
    assert len(list(folder.iterdir())) == 1
    shutil.rmtree(tmp_path / "out/checkpoint-4")
    shutil.rmtree(tmp_path / "out/checkpoint-5")
    again = warm.start(tmp_path, job(tmp_path, **changes), 2, **secret)
    assert again.codes() == [0, 0], again.text
    found = scalars(folder)
    for name in ("loss", "grad_norm", "learning_rate", "tokens_per_s", "step_s", "data_wait_s", "memory_gib"):
        assert found[f"train/{name}"] == [1, 2, 3, 4, 5]
    assert found["eval/loss"] == [2, 4, 5]
    written = b"".join(path.read_bytes() for path in (tmp_path / "out").rglob("*") if path.is_file())
    assert b"s3cr3t-of-mine" not in written
    rows = [json.loads(line) for line in (tmp_path / "out/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows if "loss" in row] == [1, 2, 3, 4, 5]
    assert all({"mfu", "data_wait_s", "step_s", "paused_s"} <= set(row) for row in rows if "loss" in row)
