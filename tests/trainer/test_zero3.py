"""ZeRO-3 with a 4-bit base on two ranks: read in parts, never whole on a rank, and trained as ZeRO-2 trains."""

import gc
import json

import pytest
import torch

from tests.trainer import warm
from tests.trainer.conftest import QUICKSTART
from trainer.config import TrainConfig
from trainer.ds_config import build_ds_config
from trainer.models.load import load_model
from trainer.models.split import Split, contents


def job(folder, base, stage, **model):
    return {
        "settings": {"seed": 7, "output_dir": str(folder / "out")},
        "model": {"dtype": "fp32", "path": str(base), "quantization": "nf4", "lora": {"r": 4, "dropout": 0.0}, **model},
        "data": {"sources": [{"path": str(QUICKSTART / "facts.jsonl"), "format": "messages"}], "max_length": 64},
        "optimizer": {"lr": 1e-2, "max_steps": 4, "batch_size": 1, "accumulation": 2,
                      "deepspeed": {"zero_stage": stage}},
        "runtime": {"log_every": 1, "save_every": 100, "eval_every": 2, "sample_prompts": ["Who?"],
                    "sampling": {"temperature": 0, "max_new_tokens": 4}},
    }  # fmt: skip


def outcome(folder):
    rows = [json.loads(line) for line in (folder / "out/metrics.jsonl").read_text().splitlines()]
    answers = [json.loads(line) for line in (folder / "out/samples.jsonl").read_text().splitlines()]
    return [(row["loss"], row["grad_norm"]) for row in rows], [(one["step"], one["answer"]) for one in answers]


@pytest.mark.parametrize("model", [{}, {"quantization": "none", "dtype": "bf16"}, {"quantization": "none", "lora": None}])
def test_zero3_trains_as_zero2_does(tiny_base, tmp_path, model):
    found = {}
    for stage in (2, 3):
        run = warm.start(tmp_path / str(stage), job(tmp_path / str(stage), tiny_base, stage, **model), 2)
        assert run.codes() == [0, 0], run.text
        found[stage] = outcome(tmp_path / str(stage))
    close = 2e-2 if model.get("dtype") == "bf16" else 1e-5
    for one, other in zip(found[3][0], found[2][0], strict=True):
        assert one == pytest.approx(other, rel=close)
    assert len(found[3][0]) == 4
    assert [step for step, _ in found[3][1]] == [0, 2, 4]
    assert found[3][1][0] == found[2][1][0], "before training both have the same model"
