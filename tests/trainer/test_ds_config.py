"""DeepSpeed's JSON as files that a person reads in review, and the user's own."""

import json
import os
from pathlib import Path

import pytest

from trainer.config.job import TrainConfig
from trainer.config.sections import DeepSpeed
from trainer.errors import ConfigError
from trainer.parallel.ds_config import bucket_sizes, build_ds_config, fill_buckets, zero_stage

GOLDEN = Path(__file__).parents[1] / "golden"
LORA_7B = 151_000_000  # trained parameters of InternLM2-7B with r 64
FIELDS = {
    "zero0": {"zero_stage": 0},
    "zero1": {"zero_stage": 1},
    "zero2": {"zero_stage": 2},
    "zero2-offload": {"zero_stage": 2, "offload": "cpu"},
    "zero3": {"zero_stage": 3},
    "zero3-offload": {"zero_stage": 3, "offload": "cpu", "offload_weights": "cpu"},
    "zero3-nvme": {"zero_stage": 3, "offload": "nvme", "offload_weights": "nvme", "nvme_path": "/nvme"},
}


def config(deepspeed, **optimizer):
    return TrainConfig.model_validate(
        {
            "model": {"path": "internlm/internlm2-chat-7b"},
            "data": {"sources": [{"path": "x"}]},
            "optimizer": {"deepspeed": deepspeed, **optimizer},
        }
    )


@pytest.mark.parametrize("name", FIELDS)
def test_ds_config_is_golden(name):
    built = build_ds_config(config(FIELDS[name]), 16, on_cpu=False)
    fill_buckets(built, LORA_7B)
    path = GOLDEN / f"deepspeed-{name}.json"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(json.dumps(built, indent=2) + "\n")
    assert built == json.loads(path.read_text())


@pytest.mark.parametrize("name", FIELDS)
def test_deepspeed_takes_what_is_built(name):
    from deepspeed.runtime.config import DeepSpeedConfig

    built = build_ds_config(config(FIELDS[name]), 1, on_cpu=False)
    fill_buckets(built, LORA_7B)
    assert DeepSpeedConfig(built).zero_config.stage == FIELDS[name]["zero_stage"]


def test_without_deepspeed_there_is_no_config():
    assert build_ds_config(config(None), 1, on_cpu=True) is None
    assert zero_stage(None) == 0


def test_buckets_are_a_part_of_what_is_trained():
    """All of them, twice, are less than the adapter; a full model gets DeepSpeed's own size."""
    assert 2 * sum(bucket_sizes(LORA_7B, 2).values()) <= LORA_7B
    assert bucket_sizes(7_737_708_544, 3)["reduce_bucket_size"] == 500_000_000
    assert bucket_sizes(1001, 2)["allgather_bucket_size"] % 2 == 0
    assert bucket_sizes(LORA_7B, 0) == {}


def own(tmp_path, values):
    path = tmp_path / "ds.json"
    path.write_text(values if isinstance(values, str) else json.dumps(values))
    return {"config": str(path)}


def test_the_users_json_is_used_as_it_is_and_auto_is_filled(tmp_path):
    theirs = {
        "train_micro_batch_size_per_gpu": "auto",
        "optimizer": {"type": "AdamW", "params": {"lr": "auto", "betas": "auto", "eps": 1e-7}},
        "zero_optimization": {"stage": 1, "reduce_bucket_size": "auto", "allgather_bucket_size": 12},
        "wall_clock_breakdown": True,
        "a key of tomorrow": [1, "x"],
    }
    built = build_ds_config(config(own(tmp_path, theirs), batch_size=2, lr=1e-3), 4, on_cpu=True)
    fill_buckets(built, LORA_7B)
    assert built == {
        **theirs,
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": 16,
        "train_batch_size": 128,
        "gradient_clipping": 1.0,
        "bf16": {"enabled": True},
        "optimizer": {"type": "AdamW", "params": {"lr": 1e-3, "betas": [0.9, 0.999], "eps": 1e-7}},
        "zero_optimization": {"stage": 1, "reduce_bucket_size": LORA_7B // 4, "allgather_bucket_size": 12},
    }
    assert zero_stage(built) == 1


def test_all_conflicts_are_told_at_once(tmp_path):
    theirs = {
        "train_batch_size": 7,
        "gradient_clipping": 0.5,
        "fp16": {"enabled": True},
        "bf16": {"enabled": False},
        "optimizer": {"type": "Lamb", "params": {"lr": 1}},
        "scheduler": {"type": "WarmupLR"},
        "activation_checkpointing": {"number_checkpoints": "auto"},
        "zero_optimization": {"stage": 2, "overlap_comm": False},
    }
    with pytest.raises(ConfigError) as raised:
        build_ds_config(config(own(tmp_path, theirs)), 2, on_cpu=False)
    assert raised.value.message.splitlines() == [
        f"optimizer.deepspeed.config: {tmp_path}/ds.json contradicts this job:",
        "  train_batch_size: got 7, ours 32 (optimizer.batch_size x accumulation x processes): change one, "
        'or write "auto"',
        '  gradient_clipping: got 0.5, ours 1.0 (optimizer.max_grad_norm): change one, or write "auto"',
        '  bf16.enabled: got false, ours true (model.dtype): change one, or write "auto"',
        '  fp16.enabled: got true, ours false (model.dtype): change one, or write "auto"',
        '  optimizer.type: got "Lamb", ours "AdamW" (the trainer\'s optimizer): change one, or write "auto"',
        '  optimizer.params.lr: got 1, ours 0.0002 (optimizer.lr): change one, or write "auto"',
        "  scheduler: got one, ours cosine (optimizer.schedule): remove theirs",
        '  activation_checkpointing.number_checkpoints: got "auto", ours none: write a value',
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[]", "got no mapping, allowed: DeepSpeed's JSON object"),
        ('{"zero_optimization": 2}', "got no mapping, allowed: DeepSpeed's JSON object"),
        ('{"bf16": ', "not JSON: Expecting value: line 1 column 10 (char 9)"),
    ],
)
def test_a_file_that_cannot_be_read_is_told(tmp_path, text, message):
    with pytest.raises(ConfigError) as raised:
        build_ds_config(config(own(tmp_path, text)), 2, on_cpu=False)
    assert raised.value.message == f"optimizer.deepspeed.config: {tmp_path}/ds.json: {message}"


def test_a_file_that_is_absent_is_told(tmp_path):
    with pytest.raises(ConfigError, match=r"no\.json: No such file or directory"):
        build_ds_config(config({"config": str(tmp_path / "no.json")}), 2, on_cpu=False)


def test_a_json_of_the_users_own_is_read_again_as_it_was_written():
    """The launcher, and the run beside its results, write every field."""
    asked = DeepSpeed(config="ds.json")
    assert DeepSpeed.model_validate(asked.model_dump(mode="json")) == asked
