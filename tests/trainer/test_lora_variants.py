"""DoRA, rsLoRA, PiSSA, LoRA+ and int8 bases: a short real training changes what it should, and PEFT loads it."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file
from transformers import set_seed

from tests.trainer import warm
from tests.trainer.conftest import QUICKSTART
from trainer.config.job import TrainConfig
from trainer.models.load import load_model
from trainer.models.tokenizer import load_tokenizer
from trainer.training.build import build_model

CPU = torch.device("cpu")
LR = 2e-3
TEXT = "<s><|im_start|>user\nWho wrote it?<|im_end|>\n<|im_start|>assistant\nNobody knows.<|im_end|>\n"
VARIANTS = {
    "plain": {},
    "dora": {"dora": True},
    "dora on nf4": {"dora": True, "quantization": "nf4"},
    "rslora": {"rslora": True},
    "pissa": {"init": "pissa"},
    "lora+": {"lr_ratio": 16.0},
    "int8": {"quantization": "int8"},
    "rslora, lora+ on nf4": {"rslora": True, "lr_ratio": 16.0, "quantization": "nf4"},
}


def job(folder, base, *, stage=None, steps=6, quantization="none", **lora):
    return {
        "settings": {"seed": 7, "output_dir": str(folder / "out")},
        "model": {"dtype": "fp32", "gradient_checkpointing": False, "path": str(base), "quantization": quantization,
                  "lora": {"r": 4, "dropout": 0.0, **lora}},
        "data": {"sources": [{"path": str(QUICKSTART / "facts.jsonl"), "format": "messages"}], "max_length": 64},
        "optimizer": {"lr": LR, "max_steps": steps, "batch_size": 8, "accumulation": 1, "schedule": "constant",
                      "warmup_ratio": 0.0, "deepspeed": None if stage is None else {"zero_stage": stage}},
        "runtime": {"log_every": 1, "save_every": 3, "keep": 9, "sample_prompts": ["Who?"],
                    "sampling": {"temperature": 0, "max_new_tokens": 4}},
    }  # fmt: skip


def logits(model, base):
    tokens = load_tokenizer(str(base))(TEXT, add_special_tokens=False, return_tensors="pt").input_ids
    with torch.no_grad():
        return model.eval()(input_ids=tokens).logits


@pytest.mark.parametrize("name", VARIANTS)
def test_a_variant_trains_and_peft_loads_it(tiny_base, tmp_path, name):
    raw = job(tmp_path, tiny_base, **VARIANTS[name])
    losses, adapter = warm.trained(tmp_path, raw)
    assert losses[-1] < losses[0]
    config = TrainConfig.model_validate(raw)
    set_seed(7)
    fresh = build_model(config, CPU)
    assert any(type(module).__name__ == "Linear8bitLt" for module in fresh.modules()) == (name == "int8")
    start = peft.get_peft_model_state_dict(fresh)
    if name != "pissa":  # whose result has twice the rank
        assert sorted(adapter) == sorted(start)
        assert not [key for key in adapter if adapter[key].equal(start[key])]
    assert any("magnitude" in key for key in adapter) == name.startswith("dora")
    again = peft.PeftModel.from_pretrained(load_model(config, CPU), tmp_path / "out/adapter")
    settings, lora = again.peft_config["default"], config.model.lora
    assert (settings.use_dora, settings.use_rslora) == (lora.dora, lora.rslora)
    state = load_file(tmp_path / "out/checkpoint-6/adapter_model.safetensors")
    peft.set_peft_model_state_dict(fresh, state)
    found, wanted = logits(again, tiny_base), logits(fresh, tiny_base)
    assert torch.allclose(found, wanted, atol=1e-4)
    assert not torch.allclose(found, logits(load_model(config, CPU), tiny_base), atol=1e-3)


def test_a_pissa_adapter_starts_as_the_base_and_ends_with_twice_the_rank(tiny_base, tmp_path):
    raw = job(tmp_path, tiny_base, steps=1, init="pissa")
    _, adapter = warm.trained(tmp_path, raw)
    model = build_model(TrainConfig.model_validate(raw), CPU)
    plain = load_model(TrainConfig.model_validate(raw), CPU)
    assert torch.allclose(logits(model, tiny_base), logits(plain, tiny_base), atol=1e-4)
    assert {value.shape[0] for key, value in adapter.items() if "lora_A" in key} == {8}
    assert json.loads((tmp_path / "out/adapter/adapter_config.json").read_text())["r"] == 8


@pytest.mark.parametrize("stage", [None, 2])
def test_lora_plus_moves_b_faster(tiny_base, tmp_path, stage):
    """Adam's first step is the rate itself."""
    _, adapter = warm.trained(tmp_path, job(tmp_path, tiny_base, stage=stage, steps=1, lr_ratio=16.0))
    moved = torch.cat([value.flatten().abs() for key, value in adapter.items() if "lora_B" in key])
    assert float(moved.median()) == pytest.approx(16 * LR, rel=0.01)


@pytest.mark.parametrize("name", ["dora", "pissa", "lora+", "int8"])
def test_a_variant_goes_on_where_it_stopped(tiny_base, tmp_path, name):
    whole, part = tmp_path / "whole", tmp_path / "part"
    losses, adapter = warm.trained(whole, job(whole, tiny_base, stage=2, **VARIANTS[name]))
    warm.stopped_at(whole, part, 3, *(["pissa_start"] if name == "pissa" else []))
    again, other = warm.trained(part, job(part, tiny_base, stage=2, **VARIANTS[name]))
    assert again == losses[3:]
    assert all(adapter[key].equal(other[key]) for key in adapter)
