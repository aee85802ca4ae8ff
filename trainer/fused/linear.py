"""Linear layers that share an input, such as q, k and v, as one product, with their adapters.

y = x W^T + s (x A^T) B^T  (LoRA, arXiv:2106.09685). Without dropout, and where W is made dense on the way anyway, the
update is added to W before it is rounded: one product instead of three, and none of the passes over y that adding to
it would take. Shapes: N tokens, I inputs, O outputs of all layers together, R ranks of all adapters together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer.kernels import ops_for


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
class Slots:
    """Memory for a product's weight [O, I] and its adapters in the dtype of the arithmetic; A matrices [R, I] lie below
    each other. `weights` and `each_a` are their parts; `adapters` all A and B, in the order of the parameters."""

    weight: torch.Tensor
    weights: tuple[torch.Tensor, ...]
    a: torch.Tensor
    each_a: tuple[torch.Tensor, ...]
    b: list[torch.Tensor]
    adapters: list[torch.Tensor]


class Scratch:
    """Slots that all layers share: what a layer puts there is good until the next one comes."""

    def __init__(self) -> None:
        self._slots: dict[Any, Slots] = {}

    def slots_for(self, product: "Product", like: torch.Tensor) -> Slots:
        """Of the dtype and on the device of `like`."""
        key = (product.kind, product.sizes, product.inputs, product.ranks, like.dtype, like.device)
        if key not in self._slots:
            self._slots[key] = new_slots(product, like)
        return self._slots[key]


def new_slots(product: "Product", like: torch.Tensor) -> Slots:
    """Slots of a product's own, of the dtype and on the device of `like`."""
    copied = product.is_copied(like.dtype)
    weight = like.new_empty(product.outputs if copied else 0, product.inputs)
    a = like.new_empty(sum(product.ranks), product.inputs)
    each_a = a.split(product.ranks) if product.ranks else ()
    b = [like.new_empty(len(adapter.b), len(adapter.a)) for adapter in product.adapters]
    adapters = [part for pair in zip(each_a, b, strict=True) for part in pair]
    return Slots(weight, weight.split(product.sizes) if copied else (), a, each_a, b, adapters)


class Product:
    """The layers of one `kind` (such as "qkv") in one decoder layer, as one product. Their adapters have one scale and
    one dropout."""

    def __init__(self, kind: str, layers: Sequence[Linear], scratch: Scratch) -> None:
        self.kind, self.layers, self.scratch = kind, layers, scratch
        self.inputs, self.sizes = layers[0].inputs, tuple(layer.outputs for layer in layers)
        self.outputs = sum(self.sizes)
        self.adapters = [layer.adapter for layer in layers if layer.adapter is not None]
        self.ranks = tuple(len(adapter.a) for adapter in self.adapters)
        self.scale = self.adapters[0].scale if self.adapters else 0.0
        self.dropout = self.adapters[0].dropout if self.adapters else 0.0
        # A and B of every adapter, in the order of Gradients.take
        self.parameters = [matrix for adapter in self.adapters for matrix in (adapter.a, adapter.b)]

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
    """Products of one layer with their weights at hand, for one pass of one step. `seed`: of the dropout, None where
    there is none."""

    def __init__(self, product: Product, slots: Slots, seed: int | None) -> None:
        self.product, self.slots = product, slots
        self.seed = seed if product.dropout else None
        self.is_merged = self.seed is None and product.merges(slots.a.dtype)
        self.weight = self._dense()
        biases = [layer.bias for layer in product.layers]
        self.bias = None if biases[0] is None else torch.cat([part for part in biases if part is not None])

    def forward(
        self, x: torch.Tensor, *, into: torch.Tensor | None = None, onto: torch.Tensor | None = None, part: int = 0
    ) -> torch.Tensor:
        """y [N, O] of x [N, I], written `into` or added `onto` a tensor that is given. `part`: which part of a pass in
        parts."""
        if onto is None:
            onto = torch.mm(x, self.weight.t(), out=into)
        else:
            onto.addmm_(x, self.weight.t())
        if self.bias is not None:
            onto += self.bias
        if self.product.adapters and not self.is_merged:
            inner = self._inner(self._dropped(x, part))
            for y, xa, b in zip(self.product.columns(onto), inner, self.slots.b, strict=True):
                y.addmm_(xa, b.t())
        return onto

    def through_b(self, grad: torch.Tensor) -> torch.Tensor:
        """The gradient for x A^T [N, R] from that of y [N, O]."""
        out = grad.new_empty(len(grad), len(self.slots.a))
        parts = out.split(self.product.ranks, dim=1)
        for to, dy, b in zip(parts, self.product.columns(grad), self.slots.b, strict=True):
            to.addmm_(dy, b, beta=0, alpha=self.product.scale)
        return out

    def input_grad(self, grad: torch.Tensor, through: torch.Tensor, part: int = 0) -> torch.Tensor:
        """The gradient for x [N, I]; `through` is through_b(grad)."""
        out = torch.mm(grad, self.weight)
        if self.product.adapters and not self.is_merged:
            out += self._dropped(through @ self.slots.a, part)  # a mask's gradient is the mask
        return out

    def add_adapter_grads(
        self, sums: "Gradients", grad: torch.Tensor, x: torch.Tensor, through: torch.Tensor, part: int = 0
    ) -> None:
        """Add the gradients for every A and B to `sums`."""
        if not self.product.adapters:
            return
        x = self._dropped(x, part)
        for number, part_a in enumerate(_wide_product(through, x).split(self.product.ranks)):
            sums.add(2 * number, part_a)
        for number, (dy, xa) in enumerate(zip(self.product.columns(grad), self._inner(x), strict=True)):
            sums.add(2 * number + 1, _wide_product(dy, xa))

    def _dense(self) -> torch.Tensor:
        """W, or with `is_merged` W + s B A. [O, I]"""
        product, out = self.product, self.slots.weight
        if not len(out):
            weight: torch.Tensor = product.layers[0].weight.detach()
            return weight
        matrices = iter(zip(self.slots.each_a, self.slots.b, strict=True))
        for part, layer in zip(self.slots.weights, product.layers, strict=True):
            a, b = next(matrices) if layer.adapter else (None, None)
            _write_weight(part, layer, (a, b) if self.is_merged else (None, None), product.scale)
        return out

    def _inner(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """s x A^T for every adapter. [N, r]"""
        out = x.new_empty(len(x), len(self.slots.a)).addmm_(x, self.slots.a.t(), beta=0, alpha=self.product.scale)
        parts: tuple[torch.Tensor, ...] = out.split(self.product.ranks, dim=1)
        return parts

    def _dropped(self, x: torch.Tensor, part: int) -> torch.Tensor:
        """x through the adapters' dropout: one mask for all layers that share the input."""
        if self.seed is None:
            return x
        dropped: torch.Tensor = ops_for(x).dropout(x, self.product.dropout, self.seed + part)
        return dropped


def passes(
    products: Sequence[Product], like: torch.Tensor, seeds: Sequence[int | None], *, lasting: bool
) -> list[Pass]:
    """The products of one layer, ready for a pass over tokens like `like`; good until the next call, or `lasting`."""
    slots = [
        new_slots(product, like) if lasting else product.scratch.slots_for(product, like) for product in products
    ]
    to = [part for slot in slots for part in slot.adapters]
    if to:
        with torch.no_grad():
            torch._foreach_copy_(to, [matrix for product in products for matrix in product.parameters])
    return [Pass(*each) for each in zip(products, slots, seeds, strict=True)]


class Gradients:
    """The gradients of a product's adapters, summed over the parts of a pass, in float32."""

    def __init__(self, product: Product) -> None:
        self.product = product
        self._sums: list[torch.Tensor | None] = [None] * len(product.parameters)

    def add(self, number: int, value: torch.Tensor) -> None:
        """Add to the gradient of the parameter of this number."""
        before = self._sums[number]
        self._sums[number] = value if before is None else before.add_(value)

    def take(self) -> list[torch.Tensor]:
        """In the order of Product.parameters and in their dtypes."""
        pairs = zip(self._sums, self.product.parameters, strict=True)
        return [value.to(parameter.dtype) for value, parameter in pairs if value is not None]


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


def _wide_product(grad: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """grad^T x in float32 or wider, not rounded in between where the device can do that."""
    if grad.is_cuda and grad.dtype == torch.bfloat16:
        return torch.mm(grad.t(), x, out_dtype=torch.float32)
    return torch.mm(grad.t(), x).to(torch.promote_types(grad.dtype, torch.float32))
