"""XComposer2's own layout: weights of our class back under the makers' names. Pure."""

import re
from typing import Any

import torch

from trainer.families.internlm2_layout import from_llama, fuse_wqkv
from trainer.families.xcomposer2_config import TOWER
from trainer.families.xcomposer2_model import PLORA

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


def unused_weights(config: Any) -> dict[str, torch.Size]:
    """Name -> shape of what the makers' checkpoints have and `to_original` does not: the norm of the class token."""
    size = torch.Size([config.vision_config["hidden_size"]])
    return {f"{TOWER}post_layernorm.{part}": size for part in ("weight", "bias")}
