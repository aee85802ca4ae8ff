"""How long a rank's own work takes: its forward passes in training, in which it waits for no other."""

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn


class ForwardTimes:
    """Attached to a model, it writes down how long each forward pass in training takes; on a GPU by its own events, of
    which it waits for none until it is asked."""

    def __init__(self, device: torch.device, clock: Callable[[], float] = time.monotonic) -> None:
        self._on_gpu, self._clock = device.type == "cuda", clock
        self._began: Any = None
        self._passes: list[tuple[Any, Any]] = []

    def attach(self, model: nn.Module) -> None:
        """From now on."""
        model.register_forward_pre_hook(self._begin)
        model.register_forward_hook(self._end)

    def take(self) -> float:
        """Seconds of the passes since it was last asked."""
        passes, self._passes = self._passes, []
        if not self._on_gpu:
            return float(sum(end - begin for begin, end in passes))
        torch.cuda.synchronize()
        return float(sum(begin.elapsed_time(end) for begin, end in passes)) / 1000

    def _begin(self, model: nn.Module, inputs: Any) -> None:
        self._began = self._mark() if model.training else None

    def _end(self, model: nn.Module, inputs: Any, output: Any) -> None:
        if self._began is not None:
            self._passes.append((self._began, self._mark()))
        self._began = None

    def _mark(self) -> Any:
        if not self._on_gpu:
            return self._clock()
        if torch.cuda.is_current_stream_capturing():  # an event in a graph has no time
            return None
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event
