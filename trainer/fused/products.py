"""How a frozen weight W [O, I] is multiplied with activations. Shapes: N tokens, I inputs, O outputs."""

import torch

from trainer.kernels import ops_for


class Dense:
    """In the dtype of both."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight

    def forward(
        self, x: torch.Tensor, into: torch.Tensor | None = None, onto: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x W^T [N, O], written `into` or added `onto` a tensor that is given."""
        if onto is None:
            return torch.mm(x, self.weight.t(), out=into)
        return onto.addmm_(x, self.weight.t())

    def backward(self, grad: torch.Tensor) -> torch.Tensor:
        """grad W [N, I]."""
        return torch.mm(grad, self.weight)


class Float8:
    """In FP8 (e4m3, arXiv:2209.05433), summed in float32: every row of either factor is scaled so that its largest
    value is the largest that FP8 has. Both directions sum over another axis of W, so each rounds W anew."""

    def __init__(self, weight: torch.Tensor) -> None:
        self.weight = weight
        self._rows: tuple[torch.Tensor, torch.Tensor] | None = None
        self._columns: tuple[torch.Tensor, torch.Tensor] | None = None

    def forward(
        self, x: torch.Tensor, into: torch.Tensor | None = None, onto: torch.Tensor | None = None
    ) -> torch.Tensor:
        """x W^T [N, O], written `into` or added `onto` a tensor that is given."""
        ops = ops_for(x)
        if self._rows is None:
            self._rows = ops.scaled_rows(self.weight)
        y: torch.Tensor = ops.scaled_product(*ops.scaled_rows(x), *self._rows, into)
        return y if onto is None else onto.add_(y)

    def backward(self, grad: torch.Tensor) -> torch.Tensor:
        """grad W [N, I]."""
        ops = ops_for(grad)
        if self._columns is None:
            self._columns = ops.scaled_columns(self.weight)
        dx: torch.Tensor = ops.scaled_product(*ops.scaled_rows(grad), *self._columns, None)
        return dx
