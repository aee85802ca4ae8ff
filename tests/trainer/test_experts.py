"""Mixtures of experts: refused where they would be quantised in part, and trained openly where they are not."""

import json

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from tests.trainer import warm
from tests.trainer.conftest import QUICKSTART
from tests.trainer.test_families import CPU, job
from trainer.errors import ConfigError
from trainer.models.experts import expert_parameters
from trainer.models.load import load_model
from trainer.models.lora import attach_lora, target_names
from trainer.training.build import parameters_line

SIZES = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "bos_token_id": 1, "eos_token_id": 2}  # fmt: skip
FEW = {"moe_intermediate_size": 16, "num_experts_per_tok": 2}
LATENT = {"num_key_value_heads": 4, "q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
          "v_head_dim": 8}  # fmt: skip
# model type -> what its config says besides the sizes, and the parameters of its experts
EXPERTS = {
    "mixtral": ({"num_local_experts": 4}, 2 * 4 * 3 * 32 * 48),
    "qwen2_moe": ({"num_experts": 4, "shared_expert_intermediate_size": 16, **FEW}, 2 * 4 * 3 * 32 * 16),
    "qwen3_moe": ({"num_experts": 4, "head_dim": 8, **FEW}, 2 * 4 * 3 * 32 * 16),
    "gpt_oss": ({"num_local_experts": 4, "head_dim": 8}, 2 * 4 * 3 * 32 * 48),
    "deepseek_v3": ({"n_routed_experts": 4, "first_k_dense_replace": 1, "n_group": 2, "topk_group": 1, **FEW, **LATENT},
                    4 * 3 * 32 * 16),
}  # fmt: skip
DENSE = {"llama": {}, "gemma3_text": {"head_dim": 8}, "cohere": {}, "recurrent_gemma": {"lru_width": 32},
         "falcon_h1": {"mamba_d_ssm": 32, "mamba_n_heads": 4, "mamba_d_head": 8}}  # fmt: skip


def made(kind, **more):
    config = CONFIG_MAPPING[kind](**{**SIZES, **more})
    return AutoModelForCausalLM.from_config(config)


@pytest.fixture(params=sorted(EXPERTS))
def mixture(request, tmp_path):
    """A checkpoint's folder, and the parameters of its experts."""
    more, size = EXPERTS[request.param]
    made(request.param, **more).save_pretrained(tmp_path)
    return tmp_path, size


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_experts_that_would_stay_as_they_are_are_refused_before_a_weight_is_read(mixture, quantization):
    folder, size = mixture
    (folder / "model.safetensors").write_bytes(b"never read")
    with pytest.raises(ConfigError, match=f"model.quantization is {quantization}, but {folder} is a mixture of expert"
                                          f"s: the {size:,} parameters of its experts can be neither") as error:
        load_model(job(folder, quantization=quantization), CPU)
    assert "set model.quantization to none" in error.value.hint


def test_unquantised_adapters_train_the_attention_alone_and_the_log_says_so(mixture):
    """PEFT turns a `gate_proj` among the targets into an adapter on the stacked experts, which takes no dropout."""
    folder, size = mixture
    config = job(folder, quantization="none", lora={"r": 2, "dropout": 0.1})
    model = attach_lora(load_model(config, CPU), config.model.lora, "base")
    adapted = {name for name, _ in model.named_parameters() if "lora_" in name}
    assert adapted and not [name for name in adapted if "attn" not in name]
    assert f"; {size:,} are in experts, which stay as they are, without an adapter" in parameters_line(model)
    ids = torch.arange(8)[None]
    model(input_ids=ids, labels=ids).loss.backward()


def test_targets_beside_the_experts_are_refused(tmp_path):
    made("deepseek_v3", **EXPERTS["deepseek_v3"][0]).save_pretrained(tmp_path)
    config = job(tmp_path, quantization="none", lora={"targets": ["gate_proj", "o_proj"]})
    with pytest.raises(ConfigError, match=r"model.lora.targets: got gate_proj, allowed: kv_a_proj_with_mqa, "):
        attach_lora(load_model(config, CPU), config.model.lora, "base")


@pytest.mark.parametrize("kind", sorted(DENSE))
def test_a_dense_model_has_no_experts(kind):
    """Convolutions and RecurrentGemma's gates have three dimensions, too."""
    with torch.device("meta"):
        model = made(kind, **DENSE[kind])
    assert expert_parameters(model) == 0
    assert {"gate_proj", "in_proj"} & set(target_names(model))


def test_a_run_is_refused_before_its_data_is_read(tmp_path):
    (tmp_path / "base").mkdir()
    config = {"model_type": "mixtral", **SIZES, "num_local_experts": 4}
    (tmp_path / "base/config.json").write_text(json.dumps(config))
    run = warm.start(tmp_path, {
        "settings": {"output_dir": str(tmp_path / "out")}, "model": {"path": str(tmp_path / "base")},
        "data": {"sources": [{"path": str(QUICKSTART / "facts.jsonl")}]},
    })  # fmt: skip
    assert run.codes() == [78], run.text
    assert "is a mixture of experts: the 36,864 parameters" in run.text and "Traceback" not in run.text
    assert not (tmp_path / "out").exists()
