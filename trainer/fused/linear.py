"""Linear layers that share an input, such as q, k and v, as one product, with their adapters.

y = x W^T + s (x A^T) B^T  (LoRA, arXiv:2106.09685). Without dropout, and where W is made dense on the way anyway, the
update is added to W before it is rounded: one product instead of three, and none of the passes over y that adding to
it would take. Shapes: N tokens, I inputs, O outputs of all layers together, R ranks of all adapters together.
"""

from collections.abc import Iterator, Sequence
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


class Scratch:
    """Memory for dense weights, one piece a kind of product, the same for all layers."""

    def __init__(self) -> None:
        self._pieces: dict[str, torch.Tensor] = {}

    def take(self, kind: str, rows: int, columns: int, like: torch.Tensor) -> torch.Tensor:
        """[rows, columns] on the device and of the dtype of `like`; what was in it before is gone."""
        piece = self._pieces.get(kind)
        if piece is None or piece.numel() < rows * columns or piece.dtype != like.dtype or piece.device != like.device:
            piece = self._pieces[kind] = like.new_empty(rows * columns)
        return piece[: rows * columns].view(rows, columns)


class Product:
    """The layers of one `kind` (such as "qkv") in one decoder layer, as one product."""

    def __init__(self, kind: str, layers: Sequence[Linear], scratch: Scratch) -> None:
        self.kind, self.layers, self.scratch = kind, layers, scratch
        self.inputs, self.outputs = layers[0].inputs, sum(layer.outputs for layer in layers)
        self.adapters = [layer.adapter for layer in layers if layer.adapter is not None]
        self.dropout = max((adapter.dropout for adapter in self.adapters), default=0.0)

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """A and B of every adapter, in the order of Gradients.take."""
        return [matrix for adapter in self.adapters for matrix in (adapter.a, adapter.b)]

    def columns(self, y: torch.Tensor) -> Iterator[torch.Tensor]:
        """The parts of y [N, O] that belong to layers with an adapter."""
        parts = y.split([layer.outputs for layer in self.layers], dim=1)
        return (part for part, layer in zip(parts, self.layers, strict=True) if layer.adapter is not None)


class Pass:
    """A product with its weight at hand, for one pass of one step. Dense weights are good until the next pass of the
    same kind. `seed`: of its dropout, None where there is none."""

    def __init__(self, product: Product, like: torch.Tensor, seed: int | None) -> None:
        self.product, self.seed = product, seed if product.dropout else None
        self.ranks = [len(adapter.a) for adapter in product.adapters]
        self.a = _joined([adapter.a for adapter in product.adapters], like)
        self.b = [adapter.b.detach().to(like.dtype) for adapter in product.adapters]
        # bf16 weights that are there already have no room for a small update
        has_room = like.dtype != torch.bfloat16 or all(layer.is_quantised for layer in product.layers)
        self.is_merged = self.seed is None and has_room and bool(self.b)
        self.weight = self._dense(like)
        biases = [layer.bias for layer in product.layers]
        self.bias = None if biases[0] is None else torch.cat([part for part in biases if part is not None])

    def forward(self, x: torch.Tensor, onto: torch.Tensor | None = None, part: int = 0) -> torch.Tensor:
        """y [N, O] of x [N, I], added to `onto` where that is given. `part`: which part of a pass in parts."""
        if onto is None:
            onto = torch.mm(x, self.weight.t())
        else:
            onto.addmm_(x, self.weight.t())
        if self.bias is not None:
            onto += self.bias
        if self.b and not self.is_merged:
            inner = (self._dropped(x, part) @ self.a.t()).split(self.ranks, dim=1)
            for y, xa, b, adapter in zip(self.product.columns(onto), inner, self.b, self.product.adapters, strict=True):
                y.addmm_(xa, b.t(), alpha=adapter.scale)
        return onto

    def through_b(self, grad: torch.Tensor) -> torch.Tensor:
        """The gradient for x A^T [N, R] from that of y [N, O]."""
        out = grad.new_empty(len(grad), sum(self.ranks))
        parts = out.split(self.ranks, dim=1)
        for to, dy, b, adapter in zip(parts, self.product.columns(grad), self.b, self.product.adapters, strict=True):
            to.addmm_(dy, b, beta=0, alpha=adapter.scale)
        return out

    def input_grad(self, grad: torch.Tensor, through: torch.Tensor, part: int = 0) -> torch.Tensor:
        """The gradient for x [N, I]; `through` is through_b(grad)."""
        out = torch.mm(grad, self.weight)
        if self.b and not self.is_merged:
            out += self._dropped(through @ self.a, part)  # a mask's gradient is the mask
        return out

    def add_adapter_grads(
        self, sums: "Gradients", grad: torch.Tensor, x: torch.Tensor, through: torch.Tensor, part: int = 0
    ) -> None:
        """Add the gradients for every A and B to `sums`."""
        if not self.b:
            return
        x = self._dropped(x, part)
        inner = (x @ self.a.t()).split(self.ranks, dim=1)
        for number, part_a in enumerate(_wide_product(through, x).split(self.ranks)):
            sums.add(2 * number, part_a)
        for number, (dy, xa) in enumerate(zip(self.product.columns(grad), inner, strict=True)):
            sums.add(2 * number + 1, _wide_product(dy, xa).mul_(self.product.adapters[number].scale))

    def _dense(self, like: torch.Tensor) -> torch.Tensor:
        """W, or with `is_merged` W + s B A. [O, I]"""
        product = self.product
        if len(product.layers) == 1 and not product.layers[0].is_quantised and not self.is_merged:
            weight: torch.Tensor = product.layers[0].weight.detach()
            return weight
        out = product.scratch.take(product.kind, product.outputs, product.inputs, like)
        parts = out.split([layer.outputs for layer in product.layers])
        matrices = iter(zip(self.a.split(self.ranks) if self.ranks else (), self.b, strict=True))
        for part, layer in zip(parts, product.layers, strict=True):
            a, b = next(matrices) if layer.adapter else (None, None)
            scale = layer.adapter.scale if layer.adapter else 0.0
            _write_weight(part, layer, (a, b) if self.is_merged else (None, None), scale)
        return out

    def _dropped(self, x: torch.Tensor, part: int) -> torch.Tensor:
        """x through the adapters' dropout: one mask for all layers that share the input."""
        if self.seed is None:
            return x
        dropped: torch.Tensor = ops_for(x).dropout(x, self.product.dropout, self.seed + part)
        return dropped


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


def _joined(matrices: list[torch.nn.Parameter], like: torch.Tensor) -> torch.Tensor:
    if not matrices:
        return like.new_empty(0, 0)
    return torch.cat([matrix.detach() for matrix in matrices]).to(like.dtype)
