"""Merged weights against arithmetic written here, and merged models against base and adapter, for every family."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainer.merging import run_config, save_base, save_run
from trainer.checkpoints.results import describe, find_result
from trainer.config.job import config_text
from trainer.errors import ConfigError, TrainError
from trainer.export.check import check_drift, measure_drift
from trainer.export.companions import write_companions
from trainer.export.merge import make_plan
from trainer.export.shards import write_checkpoint

# family -> the model_type that is written; None: its own
FAMILIES = {"internlm": "llama", "internlm2": "llama", "internlm2.5": "llama", "internlm3": "llama", "llama": "llama",
            "qwen2": "qwen2", "qwen3": "qwen3", "mistral": "mistral", "gemma": "gemma", "gemma2": "gemma2",
            "gemma3_text": "gemma3_text", "phi3": "phi3", "olmo": "olmo"}  # fmt: skip
VARIANTS = {"plain": {}, "rslora": {"rslora": True}, "dora": {"dora": True}, "pissa": {"init": "pissa"},
            "lora+": {"lr_ratio": 16.0}, "two targets": {"targets": ["q_proj", "down_proj"]}}  # fmt: skip


def merged(trained, folder, layout="auto"):
    """The written checkpoint of a run, whole; returns its plan."""
    folder.mkdir()
    plan = make_plan(trained, layout)
    write_checkpoint(plan.weights, folder)
    write_companions(folder, plan.config, plan.base, trained.config.model.chat_template)
    return plan


@pytest.fixture(scope="module")
def internlm2_base(tmp_path_factory, small_tokenizer_folder):
    return save_base(tmp_path_factory.mktemp("bases") / "internlm2", "internlm2", small_tokenizer_folder)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_answers_as_base_and_adapter_do(family, tmp_path, small_tokenizer_folder):
    base = save_base(tmp_path / "base", family, small_tokenizer_folder)
    trained = describe(find_result(save_run(tmp_path / "out", base)))
    plan = merged(trained, tmp_path / "merged")
    assert json.loads((tmp_path / "merged/config.json").read_text())["model_type"] == FAMILIES[family]
    drift = check_drift(trained, tmp_path / "merged", plan.base)
    assert drift.tokens > 200 and drift.rows == "8 rows of the run's data"
    assert drift.mean_abs < 0.02 * drift.spread and drift.agreement > 0.95
    unmerged = measure_drift(trained, base, plan.base)
    assert unmerged.mean_abs > 5 * drift.mean_abs


@pytest.mark.parametrize("layout", ["llama", "internlm2"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_variant_of_lora_is_merged(variant, layout, internlm2_base, tmp_path):
    quantization = "none" if variant == "pissa" else "nf4"
    lora = VARIANTS[variant]
    trained = describe(find_result(save_run(tmp_path / "out", internlm2_base, lora=lora, quantization=quantization)))
    plan = merged(trained, tmp_path / "merged", layout)
    drift = measure_drift(trained, tmp_path / "merged", plan.base)
    assert drift.mean_abs < 0.02 * drift.spread


def test_merging_starts_from_the_bf16_base_and_rounds_once(tmp_path, small_tokenizer_folder):
    """Pain 10: merged into what 4 bits have left of the base, or rounded on the way, the model is another one."""
    base = save_base(tmp_path / "base", "llama", small_tokenizer_folder)
    output = save_run(tmp_path / "out", base, quantization="nf4")
    merged(describe(find_result(output)), tmp_path / "merged")
    stored, found = load_file(base / "model.safetensors"), load_file(tmp_path / "merged/model.safetensors")
    low = load_file(output / "adapter/adapter_model.safetensors")
    changed = 0
    for name, weight in stored.items():
        at = "base_model.model." + name.removesuffix(".weight")
        if at + ".lora_A.weight" not in low:
            assert torch.equal(found[name], weight), name
            continue
        delta = 16 / 8 * low[at + ".lora_B.weight"].double() @ low[at + ".lora_A.weight"].double()
        exact = weight.double() + delta
        half_a_step = exact.abs() * 2.0**-8 + 1e-7
        assert ((found[name].double() - exact).abs() <= half_a_step).all(), name
        changed += 1
    assert changed == 14


def test_ranks_and_scales_of_single_modules_are_honoured(internlm2_base, tmp_path):
    output = save_run(tmp_path / "out", internlm2_base)
    folder = output / "adapter"
    low = load_file(folder / "adapter_model.safetensors")
    config = json.loads((folder / "adapter_config.json").read_text())
    for name in [name for name in low if "layers.1.mlp.up_proj" in name]:
        low[name] = low[name][:2].contiguous() if "lora_A" in name else low[name][:, :2].contiguous()
    save_file(low, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config |= {"rank_pattern": {"layers.1.mlp.up_proj": 2}, "alpha_pattern": {"up_proj": 3}}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    trained = describe(find_result(output))
    plan = merged(trained, tmp_path / "merged")
    drift = measure_drift(trained, tmp_path / "merged", plan.base)
    assert drift.mean_abs < 0.02 * drift.spread


def test_trained_embedding_and_head_are_not_lost(internlm2_base, tmp_path):
    """Pain 12: what modules_to_save has trained replaces the base's, to the bit; a resized one stops the merge."""
    output = save_run(tmp_path / "out", internlm2_base)
    path = output / "adapter/adapter_model.safetensors"
    names = [f"base_model.model.{name}.weight" for name in ("model.embed_tokens", "lm_head")]
    low = load_file(path) | {name: torch.randn(600, 64).bfloat16() for name in names}
    save_file(low, path, metadata={"format": "pt"})
    merged(describe(find_result(output)), tmp_path / "merged")
    found = load_file(tmp_path / "merged/model.safetensors")
    assert all(torch.equal(found[name.removeprefix("base_model.model.")], low[name]) for name in names)
    save_file(low | {names[1]: torch.randn(604, 64)}, path)
    with pytest.raises(ConfigError, match=r"lm_head.weight was trained with \[604, 64\], the base has \[600, 64\]"):
        make_plan(describe(find_result(output)), "auto")


def test_an_embedding_trained_apart_from_its_tied_head_is_refused(tmp_path, small_tokenizer_folder):
    """Pain 12, tied embeddings: no one tensor could be both."""
    base = save_base(tmp_path / "base", "gemma", small_tokenizer_folder)
    output = save_run(tmp_path / "out", base)
    path = output / "adapter/adapter_model.safetensors"
    save_file(load_file(path) | {"base_model.model.model.embed_tokens.weight": torch.ones(600, 64)}, path)
    with pytest.raises(ConfigError, match=r"embed_tokens.weight was trained, but the base ties its embedding"):
        make_plan(describe(find_result(output)), "auto")


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"bias": "all"}, "got bias all in adapter_config.json, allowed: none"),
        ({"peft_type": "IA3"}, "got peft_type IA3"),
        ({"trainable_token_indices": [1]}, "got trainable_token_indices"),
        ({"r": 4}, "rank 8 on model.layers.0.self_attn.o_proj, but adapter_config.json says 4"),
    ],
)
def test_an_adapter_of_another_arithmetic_is_refused(changed, words, internlm2_base, tmp_path):
    output = save_run(tmp_path / "out", internlm2_base)
    path = output / "adapter/adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))
    with pytest.raises(ConfigError, match=words):
        make_plan(describe(find_result(output)), "auto")


def test_an_adapter_of_another_base_is_refused(internlm2_base, tmp_path, small_tokenizer_folder):
    output = save_run(tmp_path / "out", internlm2_base)
    other = save_base(tmp_path / "other", "internlm2", small_tokenizer_folder, intermediate_size=128)
    narrow = save_base(tmp_path / "narrow", "internlm2", small_tokenizer_folder, num_hidden_layers=1)
    config = (output / "config.yaml").read_text()
    (output / "config.yaml").write_text(config.replace(str(internlm2_base), str(other)))
    with pytest.raises(ConfigError, match=r"adapter on model.layers.0.mlp.gate_proj is for 96 x 64 weights, got 128 x"):
        make_plan(describe(find_result(output)), "auto")
    (output / "config.yaml").write_text(config.replace(str(internlm2_base), str(narrow)))
    with pytest.raises(ConfigError, match=r"14 tensors are for no weight of the base, the first is model.layers.1"):
        make_plan(describe(find_result(output)), "auto")


def test_a_model_that_is_not_the_trained_one_is_told(internlm2_base, tmp_path):
    trained = describe(find_result(save_run(tmp_path / "out", internlm2_base)))
    with pytest.raises(TrainError, match="the merged model is not the trained one: drift on 8 rows"):
        check_drift(trained, internlm2_base, internlm2_base)


def test_without_its_data_sample_prompts_are_compared(internlm2_base, tmp_path):
    output = save_run(tmp_path / "out", internlm2_base)
    path = output / "config.yaml"
    path.write_text(path.read_text().replace("facts.jsonl", "gone.jsonl"))
    trained = describe(find_result(output))
    drift = measure_drift(trained, internlm2_base, internlm2_base)
    assert drift.rows == "sample prompts (the run's data cannot be read here)" and 5 < drift.tokens < 30
    assert not math.isnan(drift.mean_abs)


@pytest.mark.parametrize("layout", ["auto", "internlm2"])
def test_a_run_that_trained_all_weights_is_converted_only(layout, internlm2_base, tmp_path):
    output = tmp_path / "out"
    output.mkdir()
    (output / "model").symlink_to(internlm2_base)
    config = run_config(internlm2_base, output, quantization="none").model_dump(mode="json")
    config["model"]["lora"] = None
    (output / "config.yaml").write_text(config_text(config))
    trained = describe(find_result(output))
    plan = merged(trained, tmp_path / "merged", layout)
    drift = measure_drift(trained, tmp_path / "merged", plan.base)
    assert (drift.max_abs, drift.agreement) == (0, 1)
