"""How much of a card's matrix rate training reaches: model FLOP utilisation (Chowdhery et al. 2022, arXiv:2204.02311,
appendix B). Counted is what the model asks for, not what is computed twice to save memory."""

import math
import re
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

Lengths = npt.NDArray[np.integer[Any]]

# Device name -> dense bf16 matrix FLOP/s with float32 accumulation, of NVIDIA's data sheets (which print twice as
# much, for sparse matrices). A part of a card (MIG) has another name, and no rate here.
PEAKS = {
    r"B200": 2250e12,
    r"GH200 \d+GB": 989e12,
    r"H200": 989e12,
    r"H200 NVL": 835e12,
    r"H[18]00 \d+GB HBM3": 989e12,
    r"H100 NVL": 835e12,
    r"H100 PCIe": 756e12,
    r"A[18]00(-SXM4|-PCIE)?[- ]\d+GB( PCIe)?": 312e12,
    r"L40S": 362e12,
    r"L40": 181e12,
    r"L4": 121e12,
    r"A40": 150e12,
    r"A10": 125e12,
    r"GeForce RTX 4090": 165e12,
    r"GeForce RTX 3090": 71e12,
}


def peak_flops(device: str) -> float | None:
    """FLOP/s of a card by the name that its driver gives it; None for one that is not in the table."""
    return next((peak for name, peak in PEAKS.items() if re.fullmatch(f"(NVIDIA )?{name}", device)), None)


def flops_of(model: nn.Module, lengths: Lengths, device: torch.device) -> tuple[float, float] | None:
    """FLOPs of a token in training on samples of these lengths [samples], and of the device in a second; None where
    that is unknown."""
    peak = peak_flops(torch.cuda.get_device_name(device)) if device.type == "cuda" else None
    return (flops_per_token(model, mean_context(lengths)), peak) if peak else None


def mean_context(lengths: Lengths) -> float:
    """How many tokens a token sees on average, itself included, in samples of these lengths [samples]: those before it
    in its own sample."""
    sizes = lengths.astype(np.float64)
    return float((sizes * (sizes + 1) / 2).sum() / max(1.0, sizes.sum()))


def flops_per_token(model: nn.Module, context: float) -> float:
    """FLOPs of one token in training. Each matrix weight costs 2 forward and 2 for the gradient of its input, and one
    that is trained 2 more for its own. Attention costs 4 x `context` x the width of all heads in a layer, and twice as
    much backward."""
    size = sum(_size(weight) * (6 if weight.requires_grad else 4) for weight in _matrices(model))
    config: Any = model.config
    config = config.get_text_config()  # of a model that sees images, which are few tokens' worth
    heads = config.num_attention_heads
    width = heads * (getattr(config, "head_dim", None) or config.hidden_size // heads)
    return float(size + 12 * context * width * config.num_hidden_layers)


def _matrices(model: nn.Module) -> list[Any]:
    """The weights that tokens are multiplied with: looking up an embedding is no product, an output head is one even
    if it shares the embedding's weights."""
    own = [dict(module.named_parameters(recurse=False)) for module in model.modules()
           if not isinstance(module, nn.Embedding)]  # fmt: skip
    return [found["weight"] for found in own if "weight" in found and len(_shape(found["weight"])) == 2]


def _shape(weight: Any) -> tuple[int, ...]:
    """As the model has it: bitsandbytes packs 4-bit weights, and ZeRO-3 leaves a part of each here."""
    state = getattr(weight, "quant_state", None)
    return tuple(state.shape if state is not None else getattr(weight, "ds_shape", weight.shape))


def _size(weight: Any) -> int:
    return math.prod(_shape(weight))
