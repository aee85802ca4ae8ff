"""Causal attention within each sample of packed rows, forward and backward on their own.

Shapes: N tokens of all rows, H query heads, K key heads, D width of a head, S samples (padding counted).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.functional import scaled_dot_product_attention


@dataclass(frozen=True)
class CuSeqlens:
    """Where samples begin: `starts` int32 [S + 1] of N tokens, the longest sample, and the rows of the batch."""

    starts: torch.Tensor
    longest: int
    rows: int

    def whole_rows(self, tokens: int) -> bool:
        """Whether every row is one sample: then a kernel for rectangular batches does it, in half the time."""
        return len(self.starts) == self.rows + 1 and self.longest * self.rows == tokens


@dataclass
class Kept:
    """What the backward pass needs of a forward pass beside q, k, v and `out` [N, H, D]."""

    out: torch.Tensor
    sums: torch.Tensor | None = None
    rest: tuple[Any, ...] = ()


def forward(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: CuSeqlens, scale: float) -> Kept:
    """q [N, H, D], k and v [N, K, D]. bf16 on a GPU takes a flash kernel (arXiv:2205.14135), all else a plain one."""
    if not _has_kernel(q):
        return Kept(_plain(q, k, v, cu_seqlens, scale))
    if cu_seqlens.whole_rows(len(q)):
        found = torch.ops.aten._scaled_dot_product_cudnn_attention(
            *(_rows(part, cu_seqlens) for part in (q, k, v)), None, True, 0.0, True, False, scale=scale
        )
        out = found[0].transpose(1, 2).reshape(q.shape)
        return Kept(out, found[1], (found[6], found[7], found[2], found[3]))
    at, most = cu_seqlens.starts, cu_seqlens.longest
    out, sums, state, unused, _ = torch.ops.aten._flash_attention_forward(
        q, k, v, at, at, most, most, 0.0, True, False, scale=scale
    )
    return Kept(out, sums, (state, unused))


def backward(  # noqa: PLR0913, PLR0917  (what a gradient of attention depends on)
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, kept: Kept, cu_seqlens: CuSeqlens,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients for q [B, T, H, D], k and v [B, T, K, D], B*T = N, from that of kept.out [N, H, D]."""
    if kept.sums is None:
        return _plain_backward(grad, q, k, v, cu_seqlens, scale)
    if cu_seqlens.whole_rows(len(q)):
        seed, offset, starts_q, starts_k = kept.rest
        length = cu_seqlens.longest
        found = torch.ops.aten._scaled_dot_product_cudnn_attention_backward(
            *(_rows(part, cu_seqlens) for part in (grad, q, k, v, kept.out)), kept.sums, seed, offset, None,
            starts_q, starts_k, length, length, 0.0, True, scale=scale,
        )  # fmt: skip
        dq, dk, dv = (part.transpose(1, 2) for part in found)
        return dq, dk, dv
    state, unused = kept.rest
    at, most = cu_seqlens.starts, cu_seqlens.longest
    dq, dk, dv = torch.ops.aten._flash_attention_backward(
        grad, q, k, v, kept.out, kept.sums, at, at, most, most, 0.0, True, state, unused, scale=scale
    )
    return dq[None], dk[None], dv[None]


def _has_kernel(q: torch.Tensor) -> bool:
    return q.is_cuda and q.dtype == torch.bfloat16


def _rows(part: torch.Tensor, cu_seqlens: CuSeqlens) -> torch.Tensor:
    shaped: torch.Tensor = part.unflatten(0, (cu_seqlens.rows, -1)).transpose(1, 2)
    return shaped


def _plain(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: CuSeqlens, scale: float) -> torch.Tensor:
    """One sample after the other. [N, H, D]"""
    sizes = cu_seqlens.starts.diff().tolist()
    samples = zip(q.split(sizes), k.split(sizes), v.split(sizes), strict=True)
    return torch.cat([_one(*sample, scale=scale) for sample in samples])


def _one(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, *, scale: float) -> torch.Tensor:
    q, k, v = (part.transpose(0, 1)[None] for part in (q, k, v))
    many = q.shape[1] != k.shape[1]
    return scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=many)[0].transpose(0, 1)


def _plain_backward(
    grad: torch.Tensor, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, cu_seqlens: CuSeqlens, scale: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    with torch.enable_grad():
        q, k, v = (part.detach().requires_grad_() for part in (q, k, v))
        dq, dk, dv = torch.autograd.grad(_plain(q, k, v, cu_seqlens, scale), (q, k, v), grad)
    return dq[None], dk[None], dv[None]
