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


def head_norm(heads: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """As plain.head_norm; the heads of a token lie dense."""
    tokens, number, width = heads.shape
    out = heads.new_empty(heads.shape)
    blocks = {"HEADS": triton.next_power_of_2(number), "BLOCK": triton.next_power_of_2(width)}
    warps = _warps(blocks["HEADS"] * blocks["BLOCK"])
    _head_norm[(tokens,)](heads, weight, out, heads.stride(0), number, width, eps, **blocks, num_warps=warps)
    return out


@triton.jit
def _head_norm(heads, weight, out, stride, number, width, eps, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    token, head, channel = tl.program_id(0).to(tl.int64), tl.arange(0, HEADS)[:, None], tl.arange(0, BLOCK)[None, :]
    inside, at = (head < number) & (channel < width), head * width + channel
    value = tl.load(heads + token * stride + at, mask=inside, other=0.0).to(tl.float32)
    value *= tl.rsqrt(tl.sum(value * value, 1) / width + eps)[:, None]
    value = value.to(out.dtype.element_ty).to(tl.float32)  # as in _rms_norm
    value *= tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    tl.store(out + token * number * width + at, value, mask=inside)


def head_norm_backward_(grad: torch.Tensor, heads: torch.Tensor, weight: torch.Tensor, eps: float) -> None:
    """As plain.head_norm_backward_; the heads of a token lie dense, the tokens of both equally far apart."""
    tokens, number, width = heads.shape
    blocks = {"HEADS": triton.next_power_of_2(number), "BLOCK": triton.next_power_of_2(width)}
    warps = _warps(blocks["HEADS"] * blocks["BLOCK"])
    _head_norm_backward[(tokens,)](grad, heads, weight, heads.stride(0), number, width, eps, **blocks, num_warps=warps)


@triton.jit
def _head_norm_backward(grad, heads, weight, stride, number, width, eps, HEADS: tl.constexpr, BLOCK: tl.constexpr):
    token, head, channel = tl.program_id(0).to(tl.int64), tl.arange(0, HEADS)[:, None], tl.arange(0, BLOCK)[None, :]
    inside, at = (head < number) & (channel < width), head * width + channel
    value = tl.load(heads + token * stride + at, mask=inside, other=0.0).to(tl.float32)
    scaled = tl.load(grad + token * stride + at, mask=inside, other=0.0).to(tl.float32)
    scaled *= tl.load(weight + at, mask=inside, other=0.0).to(tl.float32)
    inverse = tl.rsqrt(tl.sum(value * value, 1) / width + eps)[:, None]
    result = inverse * (scaled - value * inverse * inverse * (tl.sum(scaled * value, 1) / width)[:, None])
    tl.store(grad + token * stride + at, result, mask=inside)


def rope_(heads: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> None:
    """As plain.rope_."""
    tokens, number, width = heads.shape
    _rope[(tokens,)](
        heads, cos, sin, heads.stride(0), heads.stride(1), number,
        HALF=width // 2, HEADS=triton.next_power_of_2(number), HALF_BLOCK=triton.next_power_of_2(width // 2),
    )  # fmt: skip


@triton.jit
def _rope(
    heads, cos, sin, token_stride, head_stride, number,
    HALF: tl.constexpr, HEADS: tl.constexpr, HALF_BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head, channel = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF_BLOCK)[None, :]
    inside = (head < number) & (channel < HALF)
    at = heads + token * token_stride + head * head_stride + channel
    c = tl.load(cos + token * 2 * HALF + channel, mask=channel < HALF, other=0.0).to(tl.float32)
    s = tl.load(sin + token * 2 * HALF + channel, mask=channel < HALF, other=0.0).to(tl.float32)
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    tl.store(at, first * c - second * s, mask=inside)
    tl.store(at + HALF, second * c + first * s, mask=inside)


def unrope(
    dq: torch.Tensor, dk: torch.Tensor, dv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> torch.Tensor:
    """As plain.unrope."""
    rows, length, heads, width = dq.shape
    kv_heads = dk.shape[2]
    out = dq.new_empty(rows * length, heads + 2 * kv_heads, width)
    grid, most = (rows * length,), triton.next_power_of_2(width // 2)
    for part, first, number, rotated in ((dq, 0, heads, True), (dk, heads, kv_heads, True),
                                         (dv, heads + kv_heads, kv_heads, False)):  # fmt: skip
        _unrope[grid](
            part, out[:, first:], cos, sin, length, part.stride(0), part.stride(1), part.stride(2), out.stride(0),
            number, ROTATED=rotated, HALF=width // 2, HEADS=triton.next_power_of_2(number), HALF_BLOCK=most,
        )  # fmt: skip
    return out.flatten(1)


@triton.jit
def _unrope(
    part, out, cos, sin, length, row_stride, token_stride, head_stride, out_stride, number, ROTATED: tl.constexpr,
    HALF: tl.constexpr, HEADS: tl.constexpr, HALF_BLOCK: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(0).to(tl.int64)
    head, channel = tl.arange(0, HEADS)[:, None], tl.arange(0, HALF_BLOCK)[None, :]
    inside = (head < number) & (channel < HALF)
    at = part + (token // length) * row_stride + (token % length) * token_stride + head * head_stride + channel
    first = tl.load(at, mask=inside, other=0.0).to(tl.float32)
    second = tl.load(at + HALF, mask=inside, other=0.0).to(tl.float32)
    if ROTATED:
        c = tl.load(cos + token * 2 * HALF + channel, mask=channel < HALF, other=0.0).to(tl.float32)
        s = tl.load(sin + token * 2 * HALF + channel, mask=channel < HALF, other=0.0).to(tl.float32)
        first, second = first * c + second * s, second * c - first * s
    to = out + token * out_stride + head * (2 * HALF) + channel
    tl.store(to, first, mask=inside)
    tl.store(to + HALF, second, mask=inside)


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
    _dropout[(triton.cdiv(x.numel(), 4096),)](x, out, x.numel(), rate, seed, QUARTER=1024, num_warps=4)
    return out


@triton.jit(do_not_specialize=["seed"])  # else it is compiled anew for one that 16 divides
def _dropout(x, out, number, rate, seed, QUARTER: tl.constexpr):
    begin, lane = tl.program_id(0).to(tl.int64) * 4 * QUARTER, tl.arange(0, QUARTER)
    numbers = tl.rand4x(seed, tl.program_id(0) * QUARTER + lane)  # one draw gives four
    for quarter in tl.static_range(4):
        at = begin + quarter * QUARTER + lane
        value = tl.load(x + at, mask=at < number, other=0.0).to(tl.float32)
        tl.store(out + at, tl.where(numbers[quarter] >= rate, value / (1 - rate), 0.0), mask=at < number)


def take_rows(table: torch.Tensor, at: torch.Tensor, device: torch.device) -> torch.Tensor:
    """As plain.take_rows, straight from pinned host memory."""
    out = torch.empty(len(at), table.shape[1], dtype=table.dtype, device=device)
    _take_rows[(len(at),)](table, at, out, table.shape[1], BLOCK=triton.next_power_of_2(table.shape[1]), num_warps=8)
    return out


@triton.jit
def _take_rows(table, at, out, width, BLOCK: tl.constexpr):
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    value = tl.load(table + tl.load(at + row) * width + column, mask=column < width)
    tl.store(out + row * width + column, value, mask=column < width)


def nf4_weight_(
    out: torch.Tensor, weight: Any, lora_a: torch.Tensor | None, lora_b: torch.Tensor | None, scale: float
) -> None:
    """As plain.nf4_weight_; A and B are in out's dtype, their rows dense."""
    state = weight.quant_state
    rows, columns = state.shape
    standard = state.nested and state.blocksize == NF4_BLOCK and state.state2.blocksize == SCALE_BLOCK
    if not standard or columns % NF4_BLOCK:
        plain.nf4_weight_(out, weight, lora_a, lora_b, scale)
        return
    rank = 0 if lora_a is None else len(lora_a)
    lora_a, lora_b = (out, out) if lora_a is None or lora_b is None else (lora_a, lora_b)
    height = 64 if rank else 128
    _nf4_weight[(triton.cdiv(rows, height) * (columns // NF4_BLOCK),)](
        weight.data.view(torch.uint8), state.absmax, state.state2.code, state.state2.absmax, state.offset, state.code,
        lora_a, lora_b, out, rows, columns, out.stride(0), scale, RANK=rank,
        RANK_BLOCK=min(64, max(16, triton.next_power_of_2(rank))), ROWS=height, BLOCK=NF4_BLOCK,
        SCALE_BLOCK=SCALE_BLOCK, GROUP=16, num_warps=4,
    )  # fmt: skip


@triton.jit
def _nf4_weight(
    packed, absmax, absmax_code, absmax_absmax, offset, code, lora_a, lora_b, out, rows, columns, stride, scale,
    RANK: tl.constexpr, RANK_BLOCK: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr, SCALE_BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
):  # fmt: skip
    # a tile is as wide as one block: one scale a row; tiles of neighbouring rows follow each other and share A in L2
    tiles_across, tiles_down = columns // BLOCK, tl.cdiv(rows, ROWS)
    in_group = tl.program_id(0) % (GROUP * tiles_across)
    first_down = tl.program_id(0) // (GROUP * tiles_across) * GROUP
    height = min(tiles_down - first_down, GROUP)
    row = (first_down + in_group % height).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    across = in_group // height
    inside = row < rows
    byte = across * (BLOCK // 2) + tl.arange(0, BLOCK // 2)
    pair = tl.load(packed + row[:, None] * (columns // 2) + byte[None, :], mask=inside[:, None], other=0)
    value = tl.interleave(tl.load(code + (pair >> 4)), tl.load(code + (pair & 15)))  # the first is in the high half
    # a scale is a code, times a scale of its own, plus the mean of all
    at = row * tiles_across + across
    scales = tl.load(absmax_code + tl.load(absmax + at, mask=inside, other=0))
    scales = scales * tl.load(absmax_absmax + at // SCALE_BLOCK, mask=inside, other=0.0) + tl.load(offset)
    value = value * scales[:, None]
    column = across * BLOCK + tl.arange(0, BLOCK)
    if RANK > 0:
        added = tl.zeros((ROWS, BLOCK), dtype=tl.float32)
        for begin in tl.static_range(0, RANK, RANK_BLOCK):
            k = begin + tl.arange(0, RANK_BLOCK)
            known = inside[:, None] & (k < RANK)[None, :]
            b = tl.load(lora_b + row[:, None] * RANK + k[None, :], mask=known, other=0.0)
            a = tl.load(lora_a + k[:, None] * columns + column[None, :], mask=(k < RANK)[:, None], other=0.0)
            added = tl.dot(b, a, added)
        value += scale * added
    tl.store(out + row[:, None] * stride + column[None, :], value, mask=inside[:, None])


def scaled_rows(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As plain.scaled_rows; rows of x are dense."""
    out = torch.empty(x.shape, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(len(x), 1, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(x.shape[1])
    _scaled_rows[(len(x),)](
        x, out, scales, x.shape[1], x.stride(0), SMALLEST=plain.SMALLEST, MOST=plain.FLOAT8_MAX, BLOCK=block,
        num_warps=_warps(block),
    )  # fmt: skip
    return out, scales


@triton.jit
def _scaled_rows(
    x, out, scales, width, stride, SMALLEST: tl.constexpr, MOST: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row, column = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    inside = column < width
    value = tl.load(x + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    scale = tl.maximum(tl.max(tl.abs(value)), SMALLEST) / MOST
    tl.store(scales + row, scale)
    tl.store(out + row * width + column, (value / scale).to(out.dtype.element_ty), mask=inside)


def scaled_columns(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """As plain.scaled_columns."""
    rows, width = x.shape
    out = torch.empty(width, rows, dtype=torch.float8_e4m3fn, device=x.device)
    scales = torch.empty(width, 1, dtype=torch.float32, device=x.device)
    _scaled_columns[(triton.cdiv(width, 32),)](
        x, out, scales, rows, width, x.stride(0), SMALLEST=plain.SMALLEST, MOST=plain.FLOAT8_MAX, ROWS=256, COLUMNS=32,
        num_warps=8,
    )  # fmt: skip
    return out, scales


@triton.jit
def _scaled_columns(
    x, out, scales, rows, width, stride, SMALLEST: tl.constexpr, MOST: tl.constexpr, ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):  # fmt: skip
    column = tl.program_id(0).to(tl.int64) * COLUMNS + tl.arange(0, COLUMNS)
    known = column < width
    top = tl.zeros((COLUMNS,), dtype=tl.float32)
    for begin in range(0, rows, ROWS):
        row = begin + tl.arange(0, ROWS).to(tl.int64)
        inside = (row < rows)[:, None] & known[None, :]
        value = tl.load(x + row[:, None] * stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        top = tl.maximum(top, tl.max(tl.abs(value), 0))
    scale = tl.maximum(top, SMALLEST) / MOST
    tl.store(scales + column, scale, mask=known)
    for begin in range(0, rows, ROWS):
        row = begin + tl.arange(0, ROWS).to(tl.int64)
        inside = (row < rows)[:, None] & known[None, :]
        value = tl.load(x + row[:, None] * stride + column[None, :], mask=inside, other=0.0).to(tl.float32)
        value = tl.trans((value / scale[None, :]).to(out.dtype.element_ty))
        tl.store(out + column[:, None] * rows + row[None, :], value, mask=tl.trans(inside))


def scaled_product(
    x: torch.Tensor, x_scale: torch.Tensor, y: torch.Tensor, y_scale: torch.Tensor, out: torch.Tensor | None
) -> torch.Tensor:
    """As plain.scaled_product; C and M are multiples of 16."""
    return torch._scaled_mm(x, y.t(), x_scale, y_scale.t(), out_dtype=torch.bfloat16, use_fast_accum=True, out=out)


def _tiles(out: torch.Tensor) -> tuple[int, int]:
    return len(out), triton.cdiv(out.shape[1], 2048)


def _warps(block: int) -> int:
    return min(16, max(1, block // 512))
