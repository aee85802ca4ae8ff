"""Decoding by a CUDA graph. At one token a step the GPU waits for Python to start a few thousand kernels; recorded
once, they start together, step after step."""

import functools
from collections.abc import Callable
from typing import Any

import torch
from transformers import StaticCache
from transformers.cache_utils import StaticLayer

Recorded = tuple[Callable[[], None], Any]
Recorder = Callable[[Callable[[], Any]], Recorded]


def can_replay(model: Any, quantization: str) -> bool:
    """Whether steps of this model can be recorded: on a GPU, where its kernels follow each other whatever they compute,
    which those of int8 do not: their outliers are looked at in Python."""
    return model.device.type == "cuda" and quantization != "int8" and decides_nothing(model)


def decides_nothing(model: Any) -> bool:
    """Whether a step is the same whatever was computed before: in classes that transformers compiles whole, where every
    layer's keys and values can lie in one place, which those of windows of attention cannot."""
    if not getattr(model, "_can_compile_fullgraph", False):
        return False
    return all(type(layer) is StaticLayer for layer in StaticCache(config=model.config, max_cache_len=1).layers)


def replay_steps(model: Any, record: Recorder | None = None) -> None:
    """Have the model's `forward` record its second step of one token into a StaticCache, and from then on replay it;
    everything else is called as before. `record` runs a function as the recording shall run it."""
    steps = _Steps(model.forward, record or record_graph)

    @functools.wraps(model.forward)
    def forward(*args: Any, **inputs: Any) -> Any:
        cache = next((value for value in inputs.values() if isinstance(value, StaticCache)), None)
        ids = inputs.get("input_ids")
        if args or cache is None or ids is None or ids.shape != (1, 1):
            return steps.forward(*args, **inputs)
        return steps.take(cache, inputs)

    model.forward = forward


class _Steps:
    """Steps of one token; a recording is of one cache."""

    def __init__(self, forward: Callable[..., Any], record: Recorder) -> None:
        self.forward = forward
        self._record: Recorder | None = record
        self._cache: Any = None
        self._inputs: dict[str, Any] = {}
        self._replay: Callable[[], None] | None = None
        self._output: Any = None

    def take(self, cache: Any, inputs: dict[str, Any]) -> Any:
        """The output of a step, which the next one overwrites."""
        if cache is not self._cache:
            self._cache, self._replay, self._output = cache, None, None
            return self.forward(**inputs)  # the first one allocates what the libraries need
        if self._replay is None and not self._begin(inputs):
            return self.forward(**inputs)
        for name, value in inputs.items():
            if torch.is_tensor(value):
                self._inputs[name].copy_(value)
        assert self._replay is not None
        self._replay()
        return self._output

    def _begin(self, inputs: dict[str, Any]) -> bool:
        """Record a step; a model that cannot be recorded after all is called from then on."""
        if self._record is None:
            return False
        held = {name: value.clone() if torch.is_tensor(value) else value for name, value in inputs.items()}
        try:
            self._replay, self._output = self._record(lambda: self.forward(**held))
        except RuntimeError:  # it asks the GPU for a number, or has no memory for it; nothing was computed
            self._record = None
            return False
        self._inputs = held
        return True


def record_graph(work: Callable[[], Any]) -> Recorded:
    """What replays the work, and what it returns: the same tensors each time. Recording does not compute them."""
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        output = work()
    return graph.replay, output
