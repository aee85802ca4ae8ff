"""Dynamic NTK as the InternLM models compute it: past the length that a model was trained for, the base of its rotary
embedding grows with the length of what it reads.

transformers' own `dynamic` rope keeps the base of the longest text it has seen; here it depends on this text alone.
Shapes: B rows, T new tokens, S tokens in all, H heads, D their width.
"""

from typing import Any

import torch


def rope_llama(llama_config: Any) -> Any:
    """A LlamaForCausalLM with this rope, where its config says `dynamic`."""
    from transformers import LlamaForCausalLM

    model = LlamaForCausalLM(llama_config)
    if llama_config.rope_parameters["rope_type"] == "dynamic":
        model.model.rotary_emb = DynamicNTK(llama_config)
    return model


class DynamicNTK(torch.nn.Module):
    """In place of LlamaRotaryEmbedding. It has no buffers, which a model's dtype would round."""

    def __init__(self, config: Any) -> None:
        super().__init__()
        self.config = config

    @torch.no_grad()
    def forward(self, x: torch.Tensor, position_ids: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """position_ids [B, T] -> cosines and sines [B, T, D] in the dtype of x."""
        cos, sin = rotary_angles(position_ids, frequencies(self.config, position_ids))
        return cos.to(x.dtype), sin.to(x.dtype)


def frequencies(config: Any, position_ids: torch.Tensor | None = None, device: Any = None) -> torch.Tensor:
    """Angles per position, float32 [D / 2], for a text that ends at the last of `position_ids`; without them those
    within the trained length. The base is theta * (factor * S / trained - (factor - 1)) ^ (D / (D - 2)) where S is
    above the trained length (InternLM's and InternLM2's model code)."""
    rope = config.rope_parameters
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    device = device if position_ids is None else position_ids.device
    base = torch.full((), float(rope["rope_theta"]), device=device)  # no copy from the host: a CUDA graph has none
    if position_ids is not None:
        length, factor = position_ids.max() + 1, rope["factor"]
        growth = factor * length / config.max_position_embeddings - (factor - 1)
        base = base * growth.clamp(min=1) ** (width / (width - 2))
    angles: torch.Tensor = 1.0 / base ** (torch.arange(0, width, 2, device=base.device).float() / width)
    return angles


def rotary_angles(position_ids: torch.Tensor, angles: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Positions [B, T] and angles per position [D / 2] -> cosines and sines, float32 [B, T, D]."""
    turned = position_ids[..., None].float() * angles
    both = torch.cat([turned, turned], dim=-1)
    return both.cos(), both.sin()


def apply_rotary(heads: torch.Tensor, position_ids: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Heads [B, H, T, D], each pair of elements half a width apart turned by position times angle."""
    cos, sin = (part.unsqueeze(1) for part in rotary_angles(position_ids, angles))
    first, second = heads.float().chunk(2, dim=-1)
    return (heads.float() * cos + torch.cat([-second, first], dim=-1) * sin).to(heads.dtype)
