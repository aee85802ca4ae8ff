"""InternLM2's checkpoint layout and transformers' Llama classes, both ways.

InternLM2 is a Llama whose query, key and value weights lie fused in `wqkv`, its rows grouped by key/value head:
[kv heads, q heads per kv head + 2, head size, hidden]; in each group first the queries, then the key, then the value
(InternLM's tools/convert2llama.py). The names differ as in NAMES. Dynamic NTK is that of trainer.families.rope.
"""

import re
from typing import Any

import torch

NAMES = {
    "attention.wo": "self_attn.o_proj",
    "feed_forward.w1": "mlp.gate_proj",
    "feed_forward.w3": "mlp.up_proj",
    "feed_forward.w2": "mlp.down_proj",
    "attention_norm": "input_layernorm",
    "ffn_norm": "post_attention_layernorm",
    "model.tok_embeddings": "model.embed_tokens",
    "output": "lm_head",
}
_BACK = {llama: internlm2 for internlm2, llama in NAMES.items()}
_WQKV = "attention.wqkv"
def split_wqkv(
    fused: torch.Tensor, num_heads: int, num_kv_heads: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """wqkv [(q + 2 kv) * head, hidden] -> q [q * head, hidden], k and v [kv * head, hidden]. Works for biases too."""
    per_group = num_heads // num_kv_heads
    head = fused.shape[0] // (num_heads + 2 * num_kv_heads)
    grouped = fused.view(num_kv_heads, per_group + 2, head, *fused.shape[1:])
    query, key, value = torch.split(grouped, [per_group, 1, 1], dim=1)
    return query.flatten(0, 2), key.flatten(0, 2), value.flatten(0, 2)


def fuse_wqkv(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, num_heads: int, num_kv_heads: int
) -> torch.Tensor:
    """The inverse of `split_wqkv`."""
    per_group = num_heads // num_kv_heads
    head = query.shape[0] // num_heads
    rest = query.shape[1:]
    parts = [
        query.view(num_kv_heads, per_group, head, *rest),
        key.view(num_kv_heads, 1, head, *rest),
        value.view(num_kv_heads, 1, head, *rest),
    ]
    return torch.cat(parts, dim=1).flatten(0, 2)


def to_llama(name: str, tensor: torch.Tensor, config: Any) -> list[tuple[str, torch.Tensor]]:
    """One InternLM2 weight as Llama weights; `config` is the Llama config."""
    if name.endswith("rotary_emb.inv_freq"):
        return []
    if _WQKV in name:
        parts = split_wqkv(tensor, config.num_attention_heads, config.num_key_value_heads)
        return [
            (name.replace(_WQKV, f"self_attn.{letter}_proj"), part) for letter, part in zip("qkv", parts, strict=True)
        ]
    return [(_renamed(name, NAMES), tensor)]


def from_llama(weights: dict[str, torch.Tensor], config: Any) -> dict[str, torch.Tensor]:
    """Llama weights in InternLM2's layout."""
    found = {}
    for name, tensor in weights.items():
        match = re.fullmatch(r"(.*)\.self_attn\.q_proj\.(weight|bias)", name)
        if match:
            key, value = (weights[f"{match[1]}.self_attn.{letter}_proj.{match[2]}"] for letter in "kv")
            fused = fuse_wqkv(tensor, key, value, config.num_attention_heads, config.num_key_value_heads)
            found[f"{match[1]}.{_WQKV}.{match[2]}"] = fused
        elif not re.search(r"\.self_attn\.[kv]_proj\.", name):
            found[_renamed(name, _BACK)] = tensor.contiguous()
    return found


def _renamed(name: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        if re.search(rf"(^|\.){re.escape(old)}\.", name):
            return name.replace(old, new, 1)
    return name
