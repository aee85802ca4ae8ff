"""trainer.kernels.plain's functions as Triton kernels: one pass over memory each, float32 inside.

Shapes as there: N tokens, C channels, V vocabulary, H heads of width D, R rank of an adapter.
"""

from typing import Any

import torch
import triton
import triton.language as tl

from trainer.kernels import plain

NF4_BLOCK = 64  # weights that share a scale; bitsandbytes' default
SCALE_BLOCK = 256  # scales that share a scale of their own


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As plain.rms_norm."""
    out = torch.empty_like(x)
    block = triton.next_power_of_2(x.shape[1])
    _rms_norm[(len(x),)](x, weight, out, x.shape[1], eps, BLOCK=block, num_warps=_warps(block))
    return out


@triton.jit
def _rms_norm(x, weight, out, width, eps, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(x + row * width + column, mask=inside, other=0.0).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value) / width + eps)
    # rounded before the weight is applied, as Llama does it
    value = value.to(out.dtype.element_ty).to(tl.float32)
    value *= tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, value, mask=inside)


def rms_norm_backward(
    grad: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, eps: float, residual: torch.Tensor | None
) -> torch.Tensor:
    """As plain.rms_norm_backward."""
    out = torch.empty_like(x)
    block = triton.next_power_of_2(x.shape[1])
    _rms_norm_backward[(len(x),)](
        grad, x, weight, out if residual is None else residual, out, x.shape[1], eps,
        RESIDUAL=residual is not None, BLOCK=block, num_warps=_warps(block),
    )  # fmt: skip
    return out


@triton.jit
def _rms_norm_backward(grad, x, weight, residual, out, width, eps, RESIDUAL: tl.constexpr, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = column < width
    at = row * width + column
    value = tl.load(x + at, mask=inside, other=0.0).to(tl.float32)
    scaled = tl.load(grad + at, mask=inside, other=0.0).to(tl.float32)
    scaled *= tl.load(weight + column, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value) / width + eps)
    result = inverse * (scaled - value * inverse * inverse * (tl.sum(scaled * value) / width))
    if RESIDUAL:
        result += tl.load(residual + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + at, result, mask=inside)


def rope_(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, *, inverse: bool = False) -> None:
    """As plain.rope_."""
    tokens, number, width = heads.shape
    _rope[(tokens,)](
        heads, cos, sin, heads.stride(0), heads.stride(1), number, -1.0 if inverse else 1.0,
        HALF=width // 2, HEADS=triton.next_power_of_2(number), HALF_BLOCK=triton.next_power_of_2(width // 2),
    )  # fmt: skip


@triton.jit
def _rope(
    heads, cos, sin, token_stride, head_stride, number, sign,
    HALF: tl.constexpr, HEADS: tl.constexpr, HALF_BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head, channel = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF_BLOCK)[None, :]
    inside = (head < number) & (channel < HALF)
    at = heads + token * token_stride + head * head_stride + channel
    c = tl.load(cos + token * 2 * HALF + channel, mask=channel < HALF, other=0.0).to(tl.float32)
    s = tl.load(sin + token * 2 * HALF + channel, mask=channel < HALF, other=0.0).to(tl.float32) * sign
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, first * c - second * s, mask=inside)
    tl.store(at + HALF, second * c + first * s, mask=inside)


def swiglu(gate_up: torch.Tensor) -> torch.Tensor:
    """As plain.swiglu."""
    out = gate_up.new_empty(len(gate_up), gate_up.shape[1] // 2)
    _swiglu[_tiles(out)](gate_up, out, out.shape[1], gate_up.stride(0), BLOCK=2048, num_warps=8)
    return out


@triton.jit
def _swiglu(gate_up, out, width, stride, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate = tl.load(gate_up + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_up + row * stride + width + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + row * width + column, gate * tl.sigmoid(gate) * up, mask=inside)


def swiglu_backward_(grad: torch.Tensor, gate_up: torch.Tensor) -> None:
    """As plain.swiglu_backward_."""
    _swiglu_backward[_tiles(grad)](grad, gate_up, grad.shape[1], gate_up.stride(0), BLOCK=2048, num_warps=8)


@triton.jit
def _swiglu_backward(grad, gate_up, width, stride, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = column < width
    gate_at, grad_at = gate_up + row * stride + column, grad + row * width + column
    gate = tl.load(gate_at, mask=inside, other=0.0).to(tl.float32)
    up = tl.load(gate_at + width, mask=inside, other=0.0).to(tl.float32)
    out_grad = tl.load(grad_at, mask=inside, other=0.0).to(tl.float32)
    sigmoid = tl.sigmoid(gate)
    silu = gate * sigmoid
    tl.store(gate_at, out_grad * up * sigmoid * (1 + gate * (1 - sigmoid)), mask=inside)
    tl.store(gate_at + width, out_grad * silu, mask=inside)
    tl.store(grad_at, silu * up, mask=inside)


def cross_entropy_(logits: torch.Tensor, targets: torch.Tensor, scale: float) -> torch.Tensor:
    """As plain.cross_entropy_."""
    loss = torch.empty(len(logits), dtype=torch.float32, device=logits.device)
    _cross_entropy[(len(logits),)](
        logits, targets, loss, logits.stride(0), scale, WIDTH=logits.shape[1], BLOCK=8192, num_warps=16
    )
    return loss


@triton.jit
def _cross_entropy(logits, targets, loss, stride, scale, WIDTH: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    start, target = logits + row * stride, tl.load(targets + row)
    hit = tl.load(start + target).to(tl.float32)
    top, total = -float("inf"), 0.0
    for begin in range(0, WIDTH, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        value = tl.load(start + column, mask=column < WIDTH, other=-float("inf")).to(tl.float32)
        higher = tl.maximum(top, tl.max(value))
        total = total * tl.exp(top - higher) + tl.sum(tl.exp(value - higher))
        top = higher
    log_sum = top + tl.log(total)
    tl.store(loss + row, log_sum - hit)
    for begin in range(0, WIDTH, BLOCK):
        column = begin + tl.arange(0, BLOCK)
        value = tl.load(start + column, mask=column < WIDTH, other=-float("inf")).to(tl.float32)
        grad = tl.exp(value - log_sum) - tl.where(column == target, 1.0, 0.0)
        tl.store(start + column, grad * scale, mask=column < WIDTH)


def dropout(x: torch.Tensor, rate: float, seed: int) -> torch.Tensor:
    """As plain.dropout, with other values for a seed."""
    out = torch.empty_like(x)
    _dropout[(triton.cdiv(x.numel(), 4096),)](x, out, x.numel(), rate, seed, BLOCK=4096, num_warps=8)
    return out


@triton.jit
def _dropout(x, out, number, rate, seed, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    value = tl.load(x + at, mask=at < number, other=0.0).to(tl.float32)
    kept = tl.rand(seed, at) >= rate
    tl.store(out + at, tl.where(kept, value / (1 - rate), 0.0), mask=at < number)


def nf4_weight_(
    out: torch.Tensor, weight: Any, lora_a: torch.Tensor | None, lora_b: torch.Tensor | None, scale: float
) -> None:
    """As plain.nf4_weight_; A and B are taken in out's dtype."""
    state = weight.quant_state
    rows, columns = state.shape
    standard = state.nested and state.blocksize == NF4_BLOCK and state.state2.blocksize == SCALE_BLOCK
    if not standard or columns % NF4_BLOCK:
        plain.nf4_weight_(out, weight, lora_a, lora_b, scale)
        return
    rank = 0 if lora_a is None else len(lora_a)
    lora_a, lora_b = (out, out) if lora_a is None or lora_b is None else (lora_a.contiguous(), lora_b.contiguous())
    _nf4_weight[(triton.cdiv(rows, 128), triton.cdiv(columns, 128))](
        weight.data.view(torch.uint8), state.absmax, state.state2.code, state.state2.absmax, state.offset, state.code,
        lora_a, lora_b, out, rows, columns, out.stride(0), scale, RANK=rank,
        RANK_BLOCK=min(64, max(16, triton.next_power_of_2(rank))), ROWS=128, COLUMNS=128, BLOCK=NF4_BLOCK,
        SCALE_BLOCK=SCALE_BLOCK, num_warps=8,
    )  # fmt: skip


@triton.jit
def _nf4_weight(
    packed, absmax, absmax_code, absmax_absmax, offset, code, lora_a, lora_b, out, rows, columns, stride, scale,
    RANK: tl.constexpr, RANK_BLOCK: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr, BLOCK: tl.constexpr,
    SCALE_BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    first = tl.program_id(1) * COLUMNS
    byte = first // 2 + tl.arange(0, COLUMNS // 2)
    inside = (row < rows)[:, None] & (byte < columns // 2)[None, :]
    pair = tl.load(packed + row[:, None] * (columns // 2) + byte[None, :], mask=inside, other=0)
    value = tl.interleave(tl.load(code + (pair >> 4)), tl.load(code + (pair & 15)))  # the first is in the high half
    # one scale for each block of a row: a code, times a scale of its own, plus the mean of all
    block = first // BLOCK + tl.arange(0, COLUMNS // BLOCK)
    at = row[:, None] * (columns // BLOCK) + block[None, :]
    known = (row < rows)[:, None] & (block < columns // BLOCK)[None, :]
    scales = tl.load(absmax_code + tl.load(absmax + at, mask=known, other=0))
    scales = scales * tl.load(absmax_absmax + at // SCALE_BLOCK, mask=known, other=0.0) + tl.load(offset)
    value = value.reshape(ROWS, COLUMNS // BLOCK, BLOCK) * scales[:, :, None]
    value = value.reshape(ROWS, COLUMNS)
    column = first + tl.arange(0, COLUMNS)
    if RANK > 0:
        added = tl.zeros((ROWS, COLUMNS), dtype=tl.float32)
        for begin in tl.static_range(0, RANK, RANK_BLOCK):
            k = begin + tl.arange(0, RANK_BLOCK)
            b_at = lora_b + row[:, None] * RANK + k[None, :]
            a_at = lora_a + k[:, None] * columns + column[None, :]
            b = tl.load(b_at, mask=(row < rows)[:, None] & (k < RANK)[None, :], other=0.0)
            a = tl.load(a_at, mask=(k < RANK)[:, None] & (column < columns)[None, :], other=0.0)
            added = tl.dot(b, a, added)
        value += scale * added
    target = out + row[:, None] * stride + column[None, :]
    tl.store(target, value, mask=(row < rows)[:, None] & (column < columns)[None, :])


def _tiles(out: torch.Tensor) -> tuple[int, int]:
    return len(out), triton.cdiv(out.shape[1], 2048)


def _warps(block: int) -> int:
    return min(16, max(1, block // 512))
