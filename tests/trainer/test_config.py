"""Defaults are those of XTuner's internlm2_chat_7b_qlora_oasst1_e3 (trainer-facts 3.1), written out by hand."""

import pytest
from pydantic import ValidationError

from trainer.config.job import TrainConfig

SMALLEST = {
    "model": {"path": "internlm/internlm2-chat-7b"},
    "data": {"sources": [{"path": "timdettmers/openassistant-guanaco"}]},
}


def config(**sections):
    return TrainConfig.model_validate({**SMALLEST, **sections})


def test_defaults_are_xtuners():
    values = config().model_dump()
    assert values["data"] | {"sources": None} == {
        "sources": None,
        "format": "auto",
        "max_length": 2048,
        "pack": True,
        "group_by_length": False,
        "overlong": "keep_turns",
        "bad_rows": "error",
        "validation": None,
        "image_dir": None,
        "cache_dir": None,
    }
    assert values["optimizer"] == {
        "lr": 2e-4,
        "schedule": "cosine",
        "schedule_args": {},
        "warmup_ratio": 0.03,
        "epochs": 3,
        "max_steps": None,
        "batch_size": 1,
        "accumulation": 16,
        "weight_decay": 0.0,
        "betas": [0.9, 0.999],
        "states": "float32",
        "max_grad_norm": 1.0,
        "deepspeed": {"zero_stage": 2, "offload": "none", "offload_weights": "none", "nvme_path": None, "config": None},
    }
    variants = {"rslora": False, "dora": False, "init": "zero", "lr_ratio": 1.0}
    assert values["model"]["lora"] == {"r": 64, "alpha": 16, "dropout": 0.1, "targets": None, **variants}
    assert (values["model"]["quantization"], values["model"]["chat_template"], values["model"]["dtype"]) == (
        "nf4",
        None,  # ours: XTuner's config is for InternLM2, and has its template
        "bf16",
    )
    runtime = values["runtime"]
    assert (runtime["log_every"], runtime["save_every"], runtime["keep"], runtime["eval_every"]) == (10, 500, 2, 500)
    assert runtime["sample_prompts"] == []
    assert runtime["sampling"] == {"temperature": 0.1, "top_p": 0.75, "top_k": 40, "max_new_tokens": None}


def test_every_field_says_what_it_is():
    def check(section):
        for name, field in section.model_fields.items():
            assert field.description, f"{section.__name__}.{name} has no description"
            if isinstance(field.annotation, type) and hasattr(field.annotation, "model_fields"):
                check(field.annotation)

    check(TrainConfig)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ({"path": "x", "lora": None}, "4-bit weights cannot be trained"),
        ({}, "exactly one of the two"),
        ({"init": "internlm2", "quantization": "none"}, "allowed: `lora: null`"),
        ({"path": "x", "shape": {"num_layers": 2}}, "shape with init only"),
    ],
)
def test_impossible_models_are_refused(model, words):
    with pytest.raises(ValidationError, match=words):
        config(model=model)
