"""The fused layers' arithmetic in PyTorch, for any device and dtype; what trainer.kernels.gpu is tested against.

Shapes: N tokens, C channels, V vocabulary, H heads of width D, R rank of an adapter.
"""

from typing import Any

import torch
from torch.nn import functional

FLOAT8_MAX = 448.0  # e4m3
SMALLEST = 1e-12  # a row of zeros has a scale, too


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm (arXiv:1910.07467) of x [N, C] by weight [C], computed in at least float32."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    return weight * (wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)).to(x.dtype)


def rms_norm_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None
) -> torch.Tensor:
    """Gradient for x of rms_norm, plus the gradient that reaches x past the norm, all [N, C]."""
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scaled = grad.to(wide.dtype) * weight
    inverse = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    out = inverse * (scaled - wide * inverse.square() * (scaled * wide).mean(-1, keepdim=True))
    return (out if residual is None else out + residual).to(x.dtype)


def head_norm(heads: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm of every head of its own: heads [N, H, D], each with its row of weight [H, D]. [N, H, D], dense"""
    return rms_norm(heads, weight, eps)


def head_norm_backward_(grad: torch.Tensor, heads: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
    """Replace grad, of head_norm's output, by the gradient for heads, both [N, H, D]."""
    grad.copy_(rms_norm_backward(grad, heads, weight, eps, None))


def rope_(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """Rotate heads [N, H, D] in place by the angles of cos and sin [N, D] (arXiv:2104.09864, halves as in Llama)."""
    heads.copy_(_rotated(heads, cos, sin))


def unrope(
    dq: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """The gradient of q, k and v side by side [N, (H + 2K) D] before q and k were rotated, from dq [B, T, H, D], dk and
    dv [B, T, K, D], B*T = N: the way back is the rotation by the opposite angle."""
    dq, dk, dv = (part.flatten(0, 1) for part in (dq, dk, dv))
    parts = (_rotated(dq, cos, -sin), _rotated(dk, cos, -sin), dv)
    return torch.cat([part.flatten(1) for part in parts], dim=1)


def _rotated(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    first, second = heads.chunk(2, -1)
    cos, sin = (part.chunk(2, -1)[0][:, None].to(heads.dtype) for part in (cos, sin))
    return torch.cat([first * cos - second * sin, second * cos + first * sin], -1)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of gate_up [N, 2C], gate first -> [N, C] (arXiv:2002.05202)."""
    gate, up = gate_up.chunk(2, -1)
    return functional.silu(gate) * up


def swiglu_backward_(grad: torch.Tensor, gate_up: torch.Tensor) -> None:
    """Replace gate_up [N, 2C] by its gradient, and grad [N, C] by swiglu(gate_up), which the adapter behind needs."""
    gate, up = gate_up.chunk(2, -1)
    sigmoid = torch.sigmoid(gate)
    out = gate * sigmoid * up
    gate_grad = grad * up * sigmoid * (1 + gate * (1 - sigmoid))
    gate_up.copy_(torch.cat([gate_grad, grad * gate * sigmoid], -1))
    grad.copy_(out)


def cross_entropy_(logits: torch.Tensor, targets: torch.Tensor, scale: float) -> torch.Tensor:
    """Negative log-likelihood [N] of targets [N] under logits [N, V], which become its gradient times `scale`."""
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    log_sum = wide.logsumexp(-1)
    loss = log_sum - wide.gather(-1, targets[:, None])[:, 0]
    grad = (wide - log_sum[:, None]).exp_()
    grad[torch.arange(len(targets), device=grad.device), targets] -= 1
    logits.copy_(grad.mul_(scale))
    return loss


def dropout(x: torch.Tensor, rate: float, seed: int) -> torch.Tensor:
    """x [N, C] with this share of its values at zero and the others made larger by as much; the same values for the
    same seed, so that the gradient goes the same way."""
    generator = torch.Generator(x.device).manual_seed(seed)
    kept = torch.rand(x.shape, generator=generator, device=x.device) >= rate
    return x * kept / (1 - rate)


def take_rows(table: torch.Tensor, at: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Rows `at` [N] of a table [V, C] that is in host memory, on the device. [N, C]"""
    return table.index_select(0, at.to(table.device)).to(device)


def nf4_weight_(
    out: torch.Tensor, weight: Any, lora_a: torch.Tensor | None, lora_b: torch.Tensor | None, scale: float
) -> None:
    """Write an NF4 weight (bitsandbytes' Params4bit) of [rows, columns] to `out`, with scale * B A added before it is
    rounded to out's dtype: a small update is then not lost. A [R, columns], B [rows, R]."""
    from bitsandbytes.functional import dequantize_4bit

    packed, state = weight.data, weight.quant_state
    if out.dtype == state.dtype and lora_a is None:
        out.copy_(dequantize_4bit(packed, state))
        return
    dense = _in_float32(packed, state)
    if lora_a is not None and lora_b is not None:
        dense.addmm_(lora_b.to(dense.dtype), lora_a.to(dense.dtype), alpha=scale)
    out.copy_(dense)


def _in_float32(packed: torch.Tensor, state: Any) -> torch.Tensor:
    """An NF4 weight before rounding. bitsandbytes rounds to the dtype that the state names."""
    from copy import copy

    from bitsandbytes.functional import dequantize_4bit

    wide = copy(state)
    wide.dtype = torch.float32
    dense: torch.Tensor = dequantize_4bit(packed, wide)
    return dense


def scaled_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """x [N, C] in FP8 (e4m3) and the float32 scale of each row, [N, 1], that makes its largest value FP8's largest."""
    wide = x.to(torch.float32)
    scale = wide.abs().amax(1, keepdim=True).clamp(min=SMALLEST) / FLOAT8_MAX
    return (wide / scale).to(torch.float8_e4m3fn), scale


def scaled_columns(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """scaled_rows of x^T. [C, N]"""
    return scaled_rows(x.t())


def scaled_product(
    x: torch.Tensor, x_scale: torch.Tensor, y: torch.Tensor, y_scale: torch.Tensor, out: torch.Tensor | None
) -> torch.Tensor:
    """x y^T in bf16 of two factors as scaled_rows gives them, [N, C] and [M, C]: [N, M]."""
    product = torch.mm(x.to(torch.float32) * x_scale, (y.to(torch.float32) * y_scale).t()).to(torch.bfloat16)
    return product if out is None else out.copy_(product)
