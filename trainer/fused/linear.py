"""Linear layers that share an input, such as q, k and v, as one product, with their adapters.

y = x W^T + s (x A^T) B^T  (LoRA, arXiv:2106.09685). Without dropout, and where W is made dense on the way anyway, the
update is added to W before it is rounded: one product instead of three, and none of the passes over y that adding to
it would take. FP8 would round a small update away: there adapters are products of their own, in bf16. Shapes: N tokens,
I inputs, O outputs of all layers together, R ranks of all adapters together.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from trainer.fused.products import Dense, Float8
from trainer.kernels import ops_for

Held = TypeVar("Held")


@dataclass(frozen=True)
class Adapter:
    """A linear layer's adapter: A [r, I], B [o, r], the scale s, and the dropout of its input."""

    a: torch.nn.Parameter
    b: torch.nn.Parameter
    scale: float
    dropout: float


@dataclass(frozen=True)
class Linear:
    """A frozen layer: `module` with its weight, dense or NF4, of [outputs, inputs], and its adapter if it has one."""

    module: torch.nn.Module
    outputs: int
    inputs: int
    adapter: Adapter | None

    @property
    def weight(self) -> Any:
        """The weight as it is held."""
        return self.module.weight

    @property
    def bias(self) -> torch.Tensor | None:
        """[outputs]"""
        found = self.module.bias
        return None if found is None else found.detach()  # type: ignore[operator]

    @property
    def is_quantised(self) -> bool:
        """Whether the weight has to be made dense."""
        return getattr(self.weight, "quant_state", None) is not None


@dataclass(frozen=True)
class Matrices:
    """The adapters of a product, or their gradients: A matrices below each other, [R, I], `each_a` its parts, and B of
    each, [o, r]. `a` is None where there are none."""

    a: torch.Tensor | None
    each_a: tuple[torch.Tensor, ...]
    b: tuple[torch.Tensor, ...]


class Scratch:
    """Memory that all layers share: what a layer puts there is good until the next one comes."""

    def __init__(self) -> None:
        self._held: dict[Any, Any] = {}

    def get(self, key: Any, make: Callable[[], Held]) -> Held:
        """What is there under `key`, made the first time."""
        if key not in self._held:
            self._held[key] = make()
        found: Held = self._held[key]
        return found


class Product:
    """The layers of one `kind` (such as "qkv") in one decoder layer, as one product. Their adapters have one scale and
    one dropout."""

    def __init__(self, kind: str, layers: Sequence[Linear]) -> None:
        self.kind, self.layers = kind, layers
        self.inputs, self.sizes = layers[0].inputs, tuple(layer.outputs for layer in layers)
        self.outputs = sum(self.sizes)
        self.adapters = [layer.adapter for layer in layers if layer.adapter is not None]
        self.ranks = tuple(len(adapter.a) for adapter in self.adapters)
        self.scale = self.adapters[0].scale if self.adapters else 0.0
        self.dropout = self.adapters[0].dropout if self.adapters else 0.0

    def columns(self, y: torch.Tensor) -> list[torch.Tensor]:
        """The parts of y [N, O] that belong to layers with an adapter."""
        if len(self.layers) == 1:
            return [y] * len(self.adapters)
        parts = y.split(self.sizes, dim=1)
        return [part for part, layer in zip(parts, self.layers, strict=True) if layer.adapter is not None]

    def merges(self, dtype: torch.dtype) -> bool:
        """Whether the update can be added to W: bf16 weights that are there already have no room for a small one."""
        has_room = dtype != torch.bfloat16 or all(layer.is_quantised for layer in self.layers)
        return has_room and bool(self.adapters)

    def is_copied(self, dtype: torch.dtype) -> bool:
        """Whether W has to be written for a pass, or is one dense matrix as it is."""
        return len(self.layers) > 1 or self.layers[0].is_quantised or self.merges(dtype)


class Pass:
    """A product with its weights at hand, for one pass of one step. `room` [O, I]: for the dense weight, empty where it
    is used as it is. `seed`: of the dropout, None where there is none. `float8`: products with W in FP8."""

    def __init__(
        self, product: Product, adapters: Matrices, room: torch.Tensor, seed: int | None, *, float8: bool
    ) -> None:
        self.product, self.adapters = product, adapters
        self.seed = seed if product.dropout else None
        self.is_merged = self.seed is None and product.merges(room.dtype) and not float8
        self.weight = (Float8 if float8 else Dense)(self._dense(room))
        biases = [layer.bias for layer in product.layers]
        self.bias = None if biases[0] is None else torch.cat([part for part in biases if part is not None])

    def forward(
        self, x: torch.Tensor, *, into: torch.Tensor | None = None, onto: torch.Tensor | None = None, part: int = 0
    ) -> torch.Tensor:
        """y [N, O] of x [N, I], written `into` or added `onto` a tensor that is given. `part`: which part of a pass in
        parts."""
        out = self.weight.forward(x, into, onto)
        if self.bias is not None:
            out += self.bias
        if self.product.adapters and not self.is_merged:
            inner = self._inner(self._dropped(x, part))
            for y, xa, b in zip(self.product.columns(out), inner, self.adapters.b, strict=True):
                y.addmm_(xa, b.t())
        return out

    def through_b(self, grad: torch.Tensor) -> torch.Tensor:
        """The gradient for x A^T [N, R] from that of y [N, O]."""
        out = grad.new_empty(len(grad), sum(self.product.ranks))
        parts = out.split(self.product.ranks, dim=1)
        for to, dy, b in zip(parts, self.product.columns(grad), self.adapters.b, strict=True):
            to.addmm_(dy, b, beta=0, alpha=self.product.scale)
        return out

    def input_grad(self, grad: torch.Tensor, through: torch.Tensor, part: int = 0) -> torch.Tensor:
        """The gradient for x [N, I]; `through` is through_b(grad)."""
        out = self.weight.backward(grad)
        if self.adapters.a is not None and not self.is_merged:
            out += self._dropped(through @ self.adapters.a, part)  # a mask's gradient is the mask
        return out

    def put_adapter_grads(
        self, to: Matrices, grad: torch.Tensor, x: torch.Tensor, through: torch.Tensor, part: int = 0
    ) -> None:
        """Write the gradients for every A and B, or from the second part of a pass on add them."""
        if to.a is None:
            return
        x = self._dropped(x, part)
        _wide_product(through, x, to.a, adds=part > 0)
        for dy, xa, b in zip(self.product.columns(grad), self._inner(x), to.b, strict=True):
            _wide_product(dy, xa, b, adds=part > 0)

    def _dense(self, room: torch.Tensor) -> torch.Tensor:
        """W, or with `is_merged` W + s B A. [O, I]"""
        product = self.product
        if not len(room):
            weight: torch.Tensor = product.layers[0].weight.detach()
            return weight
        matrices = iter(zip(self.adapters.each_a, self.adapters.b, strict=True))
        for part, layer in zip(room.split(product.sizes), product.layers, strict=True):
            a, b = next(matrices) if layer.adapter else (None, None)
            _write_weight(part, layer, (a, b) if self.is_merged else (None, None), product.scale)
        return room

    def _inner(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """s x A^T for every adapter. [N, r]"""
        assert self.adapters.a is not None
        out = x.new_empty(len(x), len(self.adapters.a))
        out.addmm_(x, self.adapters.a.t(), beta=0, alpha=self.product.scale)
        parts: tuple[torch.Tensor, ...] = out.split(self.product.ranks, dim=1)
        return parts

    def _dropped(self, x: torch.Tensor, part: int) -> torch.Tensor:
        """x through the adapters' dropout: one mask for all layers that share the input."""
        if self.seed is None:
            return x
        dropped: torch.Tensor = ops_for(x).dropout(x, self.product.dropout, self.seed + part)
        return dropped


def _write_weight(
    out: torch.Tensor, layer: Linear, adapter: tuple[torch.Tensor | None, torch.Tensor | None], scale: float
) -> None:
    a, b = adapter
    if layer.is_quantised:
        ops_for(out).nf4_weight_(out, layer.weight, a, b, scale)
        return
    out.copy_(layer.weight.detach())
    if a is not None and b is not None:
        out.addmm_(b, a, alpha=scale)


def _wide_product(grad: torch.Tensor, x: torch.Tensor, to: torch.Tensor, *, adds: bool) -> None:
    """Write or add grad^T x `to` a tensor of float32 or wider, not rounded in between where the device can do that."""
    if grad.dtype == to.dtype:
        to.addmm_(grad.t(), x, beta=1 if adds else 0)
    elif grad.is_cuda and adds:
        to += torch.mm(grad.t(), x, out_dtype=to.dtype)
    elif grad.is_cuda:
        torch.mm(grad.t(), x, out_dtype=to.dtype, out=to)
    else:
        to.copy_(torch.mm(grad.t(), x) + to if adds else torch.mm(grad.t(), x))
