"""Attention that keeps packed samples apart on GPUs: torch's kernel for sequences of several lengths, which never looks
across a border. On a CPU, which has no such kernel, transformers makes a block mask from the positions.

Shapes: B rows, T tokens, H heads, D their width.
"""

import inspect
from functools import cache, partial
from typing import Any

import torch

from trainer.families.vision_parts import vision_towers

VARLEN = "varlen"


def takes_cu_seqlens(dtype: str, device: torch.device) -> bool:
    """Whether models of this `model.dtype` get that kernel: it computes in bf16 only."""
    return device.type == "cuda" and dtype == "bf16"


def is_plain(model_config: Any, length: int) -> bool:
    """Whether attention in texts of this length is causal and nothing else: no window that is shorter, no capped scores
    (Gemma 2), which the kernel does not know."""
    windowed = getattr(model_config, "use_sliding_window", True)
    window = (windowed and getattr(model_config, "sliding_window", None)) or length
    return window >= length and not getattr(model_config, "attn_logit_softcapping", None)


def use_varlen(model: Any) -> None:
    """Make a model's attention take the borders that the batch brings (`cu_seq_lens_q`, see trainer.data.collate);
    without them, as in generation, it is the usual one."""
    from transformers import AttentionInterface

    AttentionInterface.register(VARLEN, varlen_attention)
    model.set_attn_implementation(VARLEN)
    for tower in vision_towers(model):  # which would take the text's borders for its own
        tower.config._attn_implementation = "sdpa"


def varlen_attention(  # noqa: PLR0913, PLR0917  (transformers calls it so)
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    cu_seq_lens_q: torch.Tensor | None = None,
    max_length_q: int = 0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each sample. query [B, H, T, D], key and value with H or fewer heads; cu_seq_lens_q:
    where samples begin in the B*T tokens, and their number, int32. Returns [B, T, H, D]."""
    if cu_seq_lens_q is None:
        from transformers.integrations.sdpa_attention import sdpa_attention_forward

        out, _ = sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
        return out, None
    flat = [tensor.transpose(1, 2).flatten(0, 1).bfloat16() for tensor in (query, key, value)]
    out = _kernel()(*flat, cu_seq_lens_q, cu_seq_lens_q, max_length_q, max_length_q, scale=scaling)
    return out.unflatten(0, (query.shape[0], -1)).to(query.dtype), None


@cache
def _kernel() -> Any:
    """torch's varlen_attn, causal, for fewer key than query heads too, in the form that this torch has it."""
    from torch.nn.attention.varlen import varlen_attn

    allowed = inspect.signature(varlen_attn).parameters
    # without splits a sample's numbers do not depend on its neighbours
    wanted: dict[str, Any] = {"window_size": (-1, 0), "is_causal": True, "enable_gqa": True, "num_splits": 1}
    return partial(varlen_attn, **{name: value for name, value in wanted.items() if name in allowed})
