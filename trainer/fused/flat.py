"""The adapters of a decoder layer, all in one: all its A matrices end to end, and all its B matrices.

FlatAdapters make parameters of these two: what the optimizer and DeepSpeed do for every parameter they then do for two
of a layer, not for fourteen. PEFT's own matrices are parts of the two, for all that knows adapters by PEFT's names:
saving, loading, generation. In ZeRO-3, which takes parameters apart, they stay parameters of their own.

Shapes: of one product R ranks and I inputs; o outputs and r ranks of one adapter.
"""

from collections.abc import Iterable, Sequence
from typing import Any

import torch

from trainer.fused.linear import Adapter, Matrices

# for LoRA+, which knows B by its name and by its two dimensions
NAMES = ("lora_A_of_all", "lora_B_of_all")


class Adapters:
    """Those of one layer, by product. `parameters` are what is trained."""

    def __init__(self, products: Sequence[Sequence[Adapter]]) -> None:
        self.products = products
        every = [adapter for product in products for adapter in product]
        self.matrices = ([adapter.a for adapter in every], [adapter.b for adapter in every]) if every else ()
        self.sizes = [sum(matrix.numel() for matrix in matrices) for matrices in self.matrices]
        self.parameters = [matrix for matrices in self.matrices for matrix in matrices]

    def cut(self, flats: Sequence[torch.Tensor]) -> list[Matrices]:
        """Tensors of `sizes` as the matrices of each product."""
        if not flats:
            return [Matrices(None, (), ()) for _ in self.products]
        each_a, each_b = (iter(_parts(*pair)) for pair in zip(flats, self._shapes(), strict=True))
        return [_of_product(product, each_a, each_b) for product in self.products]

    def in_place(self, dtype: torch.dtype) -> list[Matrices] | None:
        """The matrices of each product in the parameters' own memory, if they lie there so, in this dtype."""
        return None if self.matrices else self.cut(())

    def copy_to(self, flats: Sequence[torch.Tensor]) -> None:
        """Write the adapters' values into tensors of `sizes`."""
        with torch.no_grad():
            for flat, matrices, shapes in zip(flats, self.matrices, self._shapes(), strict=True):
                torch._foreach_copy_(_parts(flat, shapes), list[torch.Tensor](matrices))

    def new_gradients(self) -> list[torch.Tensor]:
        """Memory of `sizes` for gradients, float32 or wider."""
        wide = [torch.promote_types(matrices[0].dtype, torch.float32) for matrices in self.matrices]
        device = self.parameters[0].device if self.parameters else None
        return [torch.empty(1, size, dtype=dtype, device=device) for size, dtype in zip(self.sizes, wide, strict=True)]

    def of_parameters(self, flats: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """Gradients of `sizes` as those of the parameters, in their dtypes."""
        parts = [part for flat, shapes in zip(flats, self._shapes(), strict=True) for part in _parts(flat, shapes)]
        return [part.to(parameter.dtype) for part, parameter in zip(parts, self.parameters, strict=True)]

    def _shapes(self) -> list[list[torch.Size]]:
        """Of the matrices, also while ZeRO-3 has taken them apart."""
        return [[getattr(matrix, "ds_shape", matrix.shape) for matrix in matrices] for matrices in self.matrices]


class FlatAdapters(Adapters):
    """Their `parameters`, [1, all elements] each, are added to the layer."""

    def __init__(self, layer: torch.nn.Module, products: Sequence[Sequence[Adapter]]) -> None:
        super().__init__(products)
        self.parameters = []
        for name, matrices in zip(NAMES, self.matrices, strict=False):
            flat = torch.cat([matrix.detach().flatten() for matrix in matrices])[None]
            layer.register_parameter(name, torch.nn.Parameter(flat))
            self.parameters.append(getattr(layer, name))
        self._cut: list[Matrices] = []
        self.link()

    def link(self) -> None:
        """Make PEFT's matrices parts of the parameters, wherever DeepSpeed has moved these, and nothing that an
        optimizer sees, whatever PEFT has made of them."""
        for flat, matrices in zip(self.parameters, self.matrices, strict=True):
            for matrix, part in zip(matrices, _parts(flat.data, [each.shape for each in matrices]), strict=True):
                matrix.data = part
                matrix.requires_grad_(False)
        self._cut = self.cut([flat.data for flat in self.parameters])

    def in_place(self, dtype: torch.dtype) -> list[Matrices] | None:
        """As Adapters."""
        if any(flat.dtype != dtype for flat in self.parameters):
            return None
        if self.parameters and self._cut_at() != self.parameters[0].data_ptr():
            self.link()
        return self._cut

    def copy_to(self, flats: Sequence[torch.Tensor]) -> None:
        """As Adapters."""
        for to, flat in zip(flats, self.parameters, strict=True):
            to.copy_(flat.detach())

    def of_parameters(self, flats: Sequence[torch.Tensor]) -> list[torch.Tensor]:
        """As Adapters."""
        return [flat.to(parameter.dtype) for flat, parameter in zip(flats, self.parameters, strict=True)]

    def _cut_at(self) -> int:
        return next(found.a.data_ptr() for found in self._cut if found.a is not None)


class Copies:
    """Memory for all adapters of a layer in the dtype and on the device of `like`."""

    def __init__(self, adapters: Adapters, like: torch.Tensor) -> None:
        self.flats = [like.new_empty(1, size) for size in adapters.sizes]
        self.matrices = adapters.cut(self.flats)

    def fill(self, adapters: Adapters) -> list[Matrices]:
        """Copy the adapters' values; the matrices of each product."""
        adapters.copy_to(self.flats)
        return self.matrices


def link_adapters(model: torch.nn.Module) -> None:
    """`FlatAdapters.link` for all layers of a model that have some."""
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


def _parts(flat: torch.Tensor, shapes: Sequence[torch.Size]) -> list[torch.Tensor]:
    parts = flat.view(-1).split([shape.numel() for shape in shapes])
    return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
