"""A decoder layer of Llama's shape (arXiv:2302.13971), and of Qwen3's (arXiv:2505.09388), which norms the query and key
heads, forward and backward written out.

Shapes: N tokens of all rows, C channels, H query and K key heads of width D, F channels of the feed-forward half.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from trainer.fused import attention
from trainer.fused.attention import CuSeqlens, Kept
from trainer.fused.checkpointing import ActivationPolicy
from trainer.fused.flat import Adapters, Copies
from trainer.fused.linear import Matrices, Pass, Product, Scratch
from trainer.kernels import ops_for
from trainer.sizing.estimate import FEED_FORWARD_PART


@dataclass(frozen=True)
class Norm:
    """A frozen RMSNorm: `module` with its weight [C], as Llama's has it."""

    module: Any

    @property
    def weight(self) -> torch.Tensor:
        """Where it is now: ZeRO-3 moves it."""
        weight: torch.Tensor = self.module.weight.detach()
        return weight

    @property
    def eps(self) -> float:
        """Added to the mean square."""
        return float(self.module.variance_epsilon)


@dataclass(frozen=True)
class HeadNorm:
    """A frozen RMSNorm of every query head, `q`, and one of every key head, `k`, for H and K of them."""

    q: Norm
    k: Norm
    heads: tuple[int, int]

    @property
    def weight(self) -> torch.Tensor:
        """A row for each head. [H + K, D]"""
        pairs = zip((self.q, self.k), self.heads, strict=True)
        return torch.cat([norm.weight.expand(number, -1) for norm, number in pairs])

    @property
    def eps(self) -> float:
        """Added to the mean square."""
        return self.q.eps


@dataclass(frozen=True)
class Layer:
    """The frozen parts and the adapters of one decoder layer. `head_norm`: of the query and key heads, before they are
    rotated, where the layer has one. `scratch` is shared by all layers."""

    qkv: Product
    o: Product
    gate_up: Product
    down: Product
    attention_norm: Norm
    mlp_norm: Norm
    head_norm: HeadNorm | None
    heads: int
    kv_heads: int
    scale: float
    adapters: Adapters
    scratch: Scratch

    @property
    def products(self) -> tuple[Product, Product, Product, Product]:
        """All four, in the order of the adapters."""
        return self.qkv, self.o, self.gate_up, self.down


@dataclass(frozen=True)
class Step:
    """What all layers of a step share: the angles' cos and sin [N, D], cumulative sequence lengths, and what is kept.
    `is_training`: with dropout. `float8`: products with frozen weights in FP8."""

    cos: torch.Tensor
    sin: torch.Tensor
    cu_seqlens: CuSeqlens
    policy: ActivationPolicy
    is_training: bool
    float8: bool


def run_layer(x: torch.Tensor, layer: Layer, step: Step) -> torch.Tensor:
    """The layer's output [N, C] for x [N, C]."""
    out: torch.Tensor = _LayerFunction.apply(x, layer, step, *layer.adapters.parameters)
    return out


@dataclass
class _Activations:
    """Of one forward pass; None: not computed yet, or not kept. `qkv` is as attention takes it, or with a `head_norm`,
    whose backward pass needs what went into it, as the product leaves it."""

    x: torch.Tensor
    qkv: torch.Tensor | None = None
    attention: Kept | None = None
    middle: torch.Tensor | None = None
    gate_up: torch.Tensor | None = None


class _Worker:
    """One pass through a layer, forward or backward, with its weights made dense once."""

    def __init__(self, layer: Layer, step: Step, have: _Activations, ready: list[Pass]) -> None:
        self.layer, self.step, self.have = layer, step, have
        self.qkv, self.o, self.gate_up, self.down = ready

    def normed(self, x: torch.Tensor, norm: Norm) -> torch.Tensor:
        """RMSNorm of x. [N, C]"""
        normed: torch.Tensor = ops_for(x).rms_norm(x, norm.weight, norm.eps)
        return normed

    def heads(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """q [N, H, D], k and v [N, K, D] of qkv [N, (H + 2K) D], ready for attention."""
        qk, v = self.split(qkv)
        norm = self.layer.head_norm
        if norm is not None:
            qk = ops_for(qk).head_norm(qk, norm.weight, norm.eps)
            ops_for(qk).rope_(qk, self.step.cos, self.step.sin)
        q, k = qk.split([self.layer.heads, self.layer.kv_heads], dim=1)
        return q, k, v

    def split(self, qkv: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """q and k together [N, H + K, D], and v [N, K, D], as they are in qkv [N, (H + 2K) D]."""
        heads, kv_heads = self.layer.heads, self.layer.kv_heads
        qk, v = qkv.unflatten(1, (heads + 2 * kv_heads, -1)).split([heads + kv_heads, kv_heads], dim=1)
        return qk, v

    def fill_middle(self) -> torch.Tensor:
        """Compute what is not there yet up to the middle: x + o(attention). [N, C]"""
        have, layer = self.have, self.layer
        if have.qkv is None:
            have.qkv = self.qkv.forward(self.normed(have.x, layer.attention_norm))
            if layer.head_norm is None:
                ops_for(have.qkv).rope_(self.split(have.qkv)[0], self.step.cos, self.step.sin)
        if have.attention is None:
            have.attention = attention.forward(*self.heads(have.qkv), self.step.cu_seqlens, layer.scale)
        if have.middle is None:
            out = have.attention.out.flatten(1)
            have.middle = self.o.forward(out, onto=have.x.clone())
        return have.middle

    def parts(self) -> Iterator[tuple[int, slice]]:
        """The feed-forward half's parts of all tokens, numbered."""
        for number, begin in enumerate(range(0, len(self.have.x), FEED_FORWARD_PART)):
            yield number, slice(begin, begin + FEED_FORWARD_PART)

    def mlp(self) -> torch.Tensor:
        """The layer's output: middle + down(silu(gate) * up). [N, C]"""
        middle = self.fill_middle()
        out = middle.clone()
        if self.step.policy.keeps("gate_up"):
            self.have.gate_up = middle.new_empty(len(middle), self.layer.gate_up.outputs)
        for number, part in self.parts():
            normed = self.normed(middle[part], self.layer.mlp_norm)
            into = None if self.have.gate_up is None else self.have.gate_up[part]
            gate_up = self.gate_up.forward(normed, into=into, part=number)
            self.down.forward(ops_for(gate_up).swiglu(gate_up), onto=out[part], part=number)
        return out

    def mlp_backward(self, grad: torch.Tensor, grads: dict[str, Matrices]) -> torch.Tensor:
        """The gradient for the middle from that of the output. [N, C]"""
        norm, middle, ops = self.layer.mlp_norm, self.fill_middle(), ops_for(grad)
        out = torch.empty_like(grad)
        for number, part in self.parts():
            dy = grad[part]
            normed = self.normed(middle[part], norm)
            kept = self.have.gate_up
            gate_up = self.gate_up.forward(normed, part=number) if kept is None else kept[part]
            through = self.down.through_b(dy)
            inner = self.down.input_grad(dy, through, number)
            ops.swiglu_backward_(inner, gate_up)  # from here on gate_up is its gradient, and inner down's input
            self.down.put_adapter_grads(grads["down"], dy, inner, through, number)
            del inner
            through = self.gate_up.through_b(gate_up)
            self.gate_up.put_adapter_grads(grads["gate_up"], gate_up, normed, through, number)
            d_normed = self.gate_up.input_grad(gate_up, through, number)
            out[part] = ops.rms_norm_backward(d_normed, middle[part], norm.weight, norm.eps, dy)
        self.have.gate_up = None
        return out

    def attention_backward(self, grad: torch.Tensor, grads: dict[str, Matrices], *, to_x: bool) -> torch.Tensor | None:
        """The gradient for x from that of the middle. [N, C]"""
        have, layer, ops = self.have, self.layer, ops_for(grad)
        assert have.attention is not None
        assert have.qkv is not None
        through = self.o.through_b(grad)
        self.o.put_adapter_grads(grads["o"], grad, have.attention.out.flatten(1), through)
        d_out = self.o.input_grad(grad, through).view_as(have.attention.out)
        d_heads = attention.backward(
            d_out, *self.heads(have.qkv), have.attention, self.step.cu_seqlens, layer.scale
        )
        have.attention = None
        if layer.head_norm is None:
            have.qkv = None
        d_qkv = ops.unrope(*d_heads, self.step.cos, self.step.sin)
        del d_heads, d_out
        if layer.head_norm is not None and have.qkv is not None:
            heads = layer.head_norm
            ops.head_norm_backward_(self.split(d_qkv)[0], self.split(have.qkv)[0], heads.weight, heads.eps)
            have.qkv = None
        through = self.qkv.through_b(d_qkv)
        self.qkv.put_adapter_grads(grads["qkv"], d_qkv, self.normed(have.x, layer.attention_norm), through)
        if not to_x:
            return None
        norm = layer.attention_norm
        d_normed = self.qkv.input_grad(d_qkv, through)
        dx: torch.Tensor = ops.rms_norm_backward(d_normed, have.x, norm.weight, norm.eps, grad)
        return dx


class _LayerFunction(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, layer: Layer, step: Step, *parameters: torch.Tensor) -> torch.Tensor:
        ctx.layer, ctx.step = layer, step
        # from torch's generator, whose state a checkpoint holds
        ctx.seeds = torch.randint(2**30, (4,)).tolist() if step.is_training else [None] * 4
        needed = any(ctx.needs_input_grad)
        lasting = needed and step.policy.keeps("weights") and not step.float8  # in FP8 they are rounded anew anyway
        ready = _passes(layer, x, step, ctx.seeds, lasting=lasting)
        work = _Worker(layer, step, _Activations(x), ready)
        out = work.mlp()
        if needed:
            ctx.ready = ready if lasting else None
            _keep(ctx, work.have, step.policy)
        return out

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        layer, step = ctx.layer, ctx.step
        have = _recall(ctx, step.policy)
        ready = ctx.ready or _passes(layer, have.x, step, ctx.seeds, lasting=False)
        work = _Worker(layer, step, have, ready)
        flats = layer.adapters.new_gradients()
        kinds = (product.kind for product in layer.products)
        grads = dict(zip(kinds, layer.adapters.cut(flats), strict=True))
        middle = work.mlp_backward(grad.contiguous(), grads)
        dx = work.attention_backward(middle, grads, to_x=ctx.needs_input_grad[0])
        return dx, None, None, *layer.adapters.of_parameters(flats)


def _passes(
    layer: Layer, like: torch.Tensor, step: Step, seeds: Sequence[int | None], *, lasting: bool
) -> list[Pass]:
    """The products, ready for a pass over tokens like `like`; good until the next call, or `lasting`."""
    kind = (like.dtype, like.device)
    matrices = layer.adapters.in_place(like.dtype)
    if matrices is None:
        make = partial(Copies, layer.adapters, like)
        copies = make() if lasting else layer.scratch.get(("adapters", *layer.adapters.sizes, kind), make)
        matrices = copies.fill(layer.adapters)
    ready = []
    for product, adapters, seed in zip(layer.products, matrices, seeds, strict=True):
        shape = (product.outputs if product.is_copied(like.dtype) else 0, product.inputs)
        room = partial(like.new_empty, shape)
        held = room() if lasting else layer.scratch.get((product.kind, shape, kind), room)
        ready.append(Pass(product, adapters, held, seed, float8=step.float8))
    return ready


def _keep(ctx: Any, have: _Activations, policy: ActivationPolicy) -> None:
    kept = have.attention if policy.keeps("attention") else None
    ctx.attention = None if kept is None else (kept.sums, kept.rest)
    out = None if kept is None else kept.out
    if policy.host is not None:
        policy.host.push(have.x)
        if out is not None:
            policy.host.push(out)
        ctx.save_for_backward(None, None, None, None, None)
        return
    rest = [tensor if policy.keeps(name) else None for name, tensor in _named(have)]
    ctx.save_for_backward(have.x, out, *rest)


def _named(have: _Activations) -> list[tuple[str, torch.Tensor | None]]:
    return [("qkv", have.qkv), ("middle", have.middle), ("gate_up", have.gate_up)]


def _recall(ctx: Any, policy: ActivationPolicy) -> _Activations:
    x, out, qkv, middle, gate_up = ctx.saved_tensors
    if policy.host is not None:
        out = policy.host.pop() if ctx.attention is not None else None
        x = policy.host.pop()
    kept = None if ctx.attention is None else Kept(out, *ctx.attention)
    return _Activations(x, qkv, kept, middle, gate_up)
