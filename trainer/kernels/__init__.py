"""Arithmetic of the fused layers, each function twice under one name: in `plain` for any device, as one reads it in a
paper, and in `gpu` as Triton kernels. `ops_for` says which of the two a tensor gets."""

from functools import cache
from importlib.util import find_spec
from types import ModuleType

import torch


def ops_for(tensor: torch.Tensor) -> ModuleType:
    """The module whose functions compute on this tensor's device."""
    return _gpu() if tensor.is_cuda and find_spec("triton") else _plain()


@cache
def _gpu() -> ModuleType:
    from trainer.kernels import gpu

    return gpu


@cache
def _plain() -> ModuleType:
    from trainer.kernels import plain

    return plain
