"""The adapters of a decoder layer as two parameters: all its A matrices end to end, and all its B matrices. What the
optimizer and DeepSpeed do for every parameter they then do for two of a layer, not for fourteen. PEFT's own matrices
are parts of the two, for all that knows adapters by PEFT's names: saving, loading, generation.

Shapes: of one product R ranks and I inputs; o outputs and r ranks of one adapter.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from trainer.fused.linear import Adapter, Matrices

# for LoRA+, which knows B by its name and by its two dimensions
NAMES = ("lora_A_of_all", "lora_B_of_all")


class FlatAdapters:
    """Those of one `layer`, by product. Its `parameters`, [1, all elements] each, are added to the layer."""

    def __init__(self, layer: torch.nn.Module, products: Sequence[Sequence[Adapter]]) -> None:
        self.products = products
        every = [adapter for product in products for adapter in product]
        self.matrices = ([adapter.a for adapter in every], [adapter.b for adapter in every])
        self.parameters: list[torch.nn.Parameter] = []
        for name, matrices in zip(NAMES, self.matrices, strict=True):
            if matrices:
                flat = torch.cat([matrix.detach().flatten() for matrix in matrices])[None]
                layer.register_parameter(name, torch.nn.Parameter(flat))
                self.parameters.append(getattr(layer, name))
        self._cut: list[Matrices] = []
        self.link()

    def link(self) -> None:
        """Make PEFT's matrices parts of the parameters, wherever DeepSpeed has moved these, and nothing that an
        optimizer sees, whatever PEFT has made of them."""
        for flat, matrices in zip(self.parameters, self.matrices, strict=False):
            for matrix, part in zip(matrices, _parts(flat.data, matrices), strict=True):
                matrix.data = part
                matrix.requires_grad_(False)
        self._cut = self.cut([flat.data for flat in self.parameters])

    def cut(self, flats: Sequence[torch.Tensor]) -> list[Matrices]:
        """Tensors of the parameters' sizes as the matrices of each product."""
        if not flats:
            return [Matrices(None, (), ()) for _ in self.products]
        each_a, each_b = (iter(_parts(*pair)) for pair in zip(flats, self.matrices, strict=True))
        return [_of_product(product, each_a, each_b) for product in self.products]

    def as_they_are(self) -> list[Matrices]:
        """The matrices of each product, in the parameters' own memory."""
        if self.parameters and self._cut_at() != self.parameters[0].data_ptr():
            self.link()
        return self._cut

    def _cut_at(self) -> int:
        return next(found.a.data_ptr() for found in self._cut if found.a is not None)


@dataclass
class Copies:
    """Memory for all adapters of a layer in the dtype of the arithmetic."""

    flats: list[torch.Tensor]
    matrices: list[Matrices]

    @classmethod
    def like(cls, adapters: FlatAdapters, like: torch.Tensor) -> "Copies":
        """Of the dtype and on the device of `like`."""
        flats = [like.new_empty(flat.shape) for flat in adapters.parameters]
        return cls(flats, adapters.cut(flats))

    def fill(self, adapters: FlatAdapters) -> list[Matrices]:
        """Copy the adapters' values; the matrices of each product."""
        for to, flat in zip(self.flats, adapters.parameters, strict=True):
            to.copy_(flat.detach())
        return self.matrices


def link_adapters(model: torch.nn.Module) -> None:
    """`FlatAdapters.link` for all layers of a model that have one."""
    for module in model.modules():
        found: Any = getattr(module, "flat_adapters", None)
        if found is not None:
            found.link()


def _of_product(product: Sequence[Adapter], each_a: Iterable[torch.Tensor], each_b: Iterable[torch.Tensor]) -> Matrices:
    a = [part for _, part in zip(product, each_a, strict=False)]
    b = tuple(part for _, part in zip(product, each_b, strict=False))
    if not a:
        return Matrices(None, (), ())
    whole = a[0].as_strided((sum(map(len, a)), a[0].shape[1]), a[0].stride())
    return Matrices(whole, tuple(a), b)


def _parts(flat: torch.Tensor, matrices: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    parts = flat.view(-1).split([matrix.numel() for matrix in matrices])
    return [part.view(matrix.shape) for part, matrix in zip(parts, matrices, strict=True)]
