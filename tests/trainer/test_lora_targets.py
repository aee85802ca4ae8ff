"""What auto targets are: every linear layer of the language model, under names that servers know, and nothing else."""

import pytest
import torch

from tests.trainer.reference import BY_NAME, write_checkpoint
from tests.trainer.test_families import CPU, job
from trainer.errors import ConfigError
from trainer.models.load import load_model
from trainer.models.lora import attach_lora, target_names

TEXT = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
        "num_key_value_heads": 1}  # fmt: skip
VISION = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2,
          "image_size": 8, "patch_size": 4}  # fmt: skip


STILL = {"attn_pdrop": 0.0, "embd_pdrop": 0.0, "resid_pdrop": 0.0}


def adapted(model):
    lora = job("x", lora={"r": 2}).model.lora
    found = attach_lora(model, lora, "base")
    return {name.partition(".lora_A")[0] for name, _ in found.named_parameters() if "lora_A" in name}


def llava():
    from transformers import LlavaConfig, LlavaForConditionalGeneration

    config = LlavaConfig(text_config={"model_type": "llama", **TEXT},
                         vision_config={"model_type": "clip_vision_model", **VISION}, image_token_index=39)  # fmt: skip
    return LlavaForConditionalGeneration(config)


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2, **STILL))


def test_a_vision_tower_and_its_projector_get_none():
    model = llava()
    towers = [name for name, _ in model.named_modules() if "vision" in name and name.endswith("q_proj")]
    assert towers, "its layers have the names of the language model's"
    names = adapted(model)
    assert len(names) == 7 and all("language_model" in name for name in names)


def test_gpt2s_own_kind_of_linear_layer_is_one():
    names = adapted(gpt2())
    assert {name.rpartition(".")[2] for name in names} == {"c_attn", "c_proj", "c_fc"}


@pytest.mark.parametrize("name", ["output", "output_layer", "embed_out", "lm_head"])
def test_a_head_is_known_by_its_name(name):
    model = torch.nn.Sequential()
    model.add_module("wqkv", torch.nn.Linear(4, 4))
    model.add_module(name, torch.nn.Linear(4, 9))
    model.add_module("embedding", torch.nn.Embedding(9, 4))
    assert target_names(model) == ["wqkv"]


def test_a_model_without_linear_layers_is_refused():
    with pytest.raises(ConfigError, match="got Embedding, allowed: a model with linear layers"):
        attach_lora(torch.nn.Embedding(3, 3), job("x").model.lora, "base")


@pytest.mark.parametrize("name", ["internlm2", "internlm"])
def test_pain_19_adapters_have_the_names_that_servers_load(tmp_path, name):
    """Pain 19 (lmdeploy#2439, vllm#4160): a LoRA on the fused wqkv, or on the head, is one that no server takes."""
    write_checkpoint(tmp_path, BY_NAME[name])
    names = adapted(load_model(job(tmp_path), CPU))
    assert len(names) == 2 * 7 and not [one for one in names if "wqkv" in one or "lm_head" in one]
    assert {one.rpartition(".")[2] for one in names} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"
    }  # fmt: skip


def test_other_models_are_loaded_by_transformers_and_adapted(tmp_path):
    gpt2().save_pretrained(tmp_path)
    ids = torch.arange(12)[None]
    model = attach_lora(load_model(job(tmp_path), CPU), job("x", lora={"r": 2, "dropout": 0.0}).model.lora, "base")
    optimizer = torch.optim.AdamW([one for one in model.parameters() if one.requires_grad], lr=0.05)
    losses = []
    for _ in range(3):
        loss = model(input_ids=ids, labels=ids).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
