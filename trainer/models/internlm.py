"""InternLM v1: a Llama with biases on the attention's four matrices, under Llama's own weight names
(InternLM's model code; the bias was added to transformers for it in PR 26302)."""

from typing import Any

import torch

from trainer.models.internlm2 import SHARED_FIELDS


def llama_config(raw: dict[str, Any]) -> Any:
    """transformers' LlamaConfig for an InternLM config.json. `rotary: {type: dynamic}` is dynamic NTK with factor 1."""
    from transformers import LlamaConfig

    rotary = raw.get("rotary") or {}
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": float(rotary.get("base", 10000.0))}
    if rotary.get("type") == "dynamic":
        rope |= {"rope_type": "dynamic", "factor": float(rotary.get("scaling_factor", 1.0))}
    fields = {key: raw[key] for key in SHARED_FIELDS if key in raw}
    return LlamaConfig(
        **{"tie_word_embeddings": False, **fields}, attention_bias=bool(raw.get("bias", True)), rope_parameters=rope
    )


def to_llama(name: str, tensor: torch.Tensor, config: Any) -> list[tuple[str, torch.Tensor]]:
    """The weight under its own name; the rotary buffers are computed, not read."""
    return [] if name.endswith("rotary_emb.inv_freq") else [(name, tensor)]
