"""DeepSpeed's JSON as files that a person reads in review."""

import json
from pathlib import Path

import pytest

from trainer.config import TrainConfig
from trainer.ds_config import build_ds_config

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.mark.parametrize("stage", [0, 2, 3])
def test_ds_config_is_golden(stage):
    config = TrainConfig.model_validate(
        {
            "model": {"path": "internlm/internlm2-chat-7b"},
            "data": {"sources": [{"path": "x"}]},
            "optimizer": {"deepspeed": {"zero_stage": stage, "offload": "cpu" if stage == 3 else "none"}},
        }
    )
    assert build_ds_config(config, 16, on_cpu=False) == json.loads((GOLDEN / f"deepspeed-zero{stage}.json").read_text())


def test_without_deepspeed_there_is_no_config():
    config = TrainConfig.model_validate(
        {"model": {"path": "x"}, "data": {"sources": [{"path": "x"}]}, "optimizer": {"deepspeed": None}}
    )
    assert build_ds_config(config, 1, on_cpu=True) is None
