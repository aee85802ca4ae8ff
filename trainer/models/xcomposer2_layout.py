"""XComposer2's own layout: weights of our class back under the makers' names, and new checkpoints of random weights,
for tests and dry runs. [I/O]"""

import json
import re
from pathlib import Path
from typing import Any

import torch

from trainer.models.internlm2 import from_llama, fuse_wqkv, internlm2_config
from trainer.models.xcomposer2 import PLORA, XComposer2ForCausalLM, llama_config
from trainer.models.xcomposer2_config import TOWER, vision_sizes

TINY = {
    "vocab_size": 2000,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "img_size": 28,
    "plora_rank": 8,
    "vision_config": {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "patch_size": 14,
    },
}
_PLORA_WEIGHT = re.compile(r"(model\.layers\.\d+)\.plora\.(\w+)\.(a|b\.\w+)\.weight")


def to_original(weights: dict[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    """Weights of XComposer2ForCausalLM under the makers' names, to the bit; what that class does not have (the tower's
    post_layernorm) is not there, and a resized table of positions stays resized."""
    decoder, found = {}, {}
    for name, tensor in weights.items():
        if name.startswith("vit."):
            found[TOWER + name.removeprefix("vit.")] = tensor
        elif match := _PLORA_WEIGHT.fullmatch(name):
            found |= _plora(match, weights, config)
        else:
            decoder[name] = tensor
    return from_llama(decoder, config) | found


def _plora(match: re.Match[str], weights: dict[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    layer, matrix, part = match.groups()
    half = "attention" if matrix.startswith("wq") or matrix == "wo" else "feed_forward"
    home = f"{layer}.{half}.{matrix}.Plora_"
    if part == "a":
        return {f"{home}A.weight": weights[match[0]]}
    first, *others = (weights[f"{layer}.plora.{matrix}.b.{name}.weight"] for name in PLORA[matrix][1])
    if not others:
        return {f"{home}B.weight": first}
    key, value = others
    return {f"{home}B.weight": fuse_wqkv(first, key, value, config.num_attention_heads, config.num_key_value_heads)}


def write_checkpoint(folder: Path, seed: int, **sizes: Any) -> None:
    """A seeded random XComposer2 in the makers' layout, bfloat16, without a tokenizer. `sizes`: keys of its config.json
    in place of TINY's; the tower's are in `vision_config`."""
    from huggingface_hub import save_torch_state_dict

    raw = {**TINY, **sizes}
    usual = {"rope_theta": 1e6, "rms_norm_eps": 1e-5, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2}
    config = llama_config({**usual, **raw})
    torch.manual_seed(seed)
    model = XComposer2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if ".plora." in name:
            torch.nn.init.normal_(parameter, std=0.02)
    weights = to_original(model.state_dict(), config)
    width = vision_sizes(raw)["hidden_size"]
    for name, value in (("weight", torch.ones(width)), ("bias", torch.zeros(width))):
        weights[f"{TOWER}post_layernorm.{name}"] = value
    folder.mkdir(parents=True, exist_ok=True)
    stored = {name: tensor.to(torch.bfloat16).contiguous() for name, tensor in weights.items()}
    save_torch_state_dict(stored, folder, max_shard_size="4GB")
    own = {key: raw[key] for key in ("img_size", "plora_rank", "vision_config")}
    names = {"model_type": "internlmxcomposer2", "architectures": ["InternLMXComposer2ForCausalLM"], "max_length": 4096}
    text = json.dumps({**internlm2_config(config), **own, **names}, indent=1) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
