"""Weights from mapped files to a device, a piece at a time: the host holds two pieces besides the file, and the device
the weight in its own precision only. The next piece is read while the GPU takes and quantises the one before."""

from typing import Any

import torch

PIECE = 2**24  # elements


class WeightLoader:
    """Gives copies of tensors in `dtype` on `device`."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self.dtype, self.device = dtype, device
        self._pinned: list[tuple[torch.Tensor, Any]] = []
        if device.type == "cuda":
            new_event: Any = torch.cuda.Event
            self._pinned = [(torch.empty(PIECE, dtype=dtype, pin_memory=True), new_event()) for _ in range(2)]

    def __call__(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of a tensor of any shape, contiguous; one of the meta device stays there."""
        if tensor.is_meta:
            return tensor.to(self.dtype)
        moved = torch.empty(tensor.shape, dtype=self.dtype, device=self.device)
        for target, source in zip(_pieces(moved), _pieces(tensor), strict=True):
            self._copy(target, source)
        return moved

    def _copy(self, target: torch.Tensor, source: torch.Tensor) -> None:
        if not self._pinned:
            target.copy_(source)
            return
        buffer, taken = self._pinned.pop(0)
        taken.synchronize()
        target.copy_(buffer[: len(source)].copy_(source), non_blocking=True)
        taken.record()
        self._pinned.append((buffer, taken))


def _pieces(tensor: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.split(tensor.reshape(-1), PIECE)
