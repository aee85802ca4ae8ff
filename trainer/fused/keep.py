"""What a layer keeps of its forward pass for the backward pass: the rest is computed again (checkpointing,
arXiv:1604.06174), and what is kept can wait in host memory, copied while the GPU computes."""

from collections import deque
from dataclasses import dataclass

import torch

# beside a layer's input; "attention" is the attention's output, "middle" what goes into the feed-forward half,
# "weights" the dense weights; "offload" keeps in host memory
POLICIES: dict[str, frozenset[str]] = {
    "none": frozenset({"qkv", "attention", "middle", "gate_up", "weights"}),
    "selective": frozenset({"qkv", "attention", "middle"}),
    "full": frozenset(),
    "offload": frozenset({"attention"}),
}


@dataclass(frozen=True)
class Policy:
    """`name`: a key of POLICIES. `host`: where kept tensors wait; None: on the device."""

    name: str
    host: "Host | None" = None

    def keeps(self, what: str) -> bool:
        """Whether a layer keeps this."""
        return what in POLICIES[self.name]


def policy_named(name: str, device: torch.device) -> Policy:
    """`offload` waits in host memory where there is a GPU to free."""
    return Policy(name, Host(device) if name == "offload" and device.type == "cuda" else None)


class Host:
    """Tensors of one step in pinned host memory: they come back in the opposite order, each while the GPU computes with
    the one before it."""

    AHEAD = 2  # a layer keeps so many this way

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self._waiting: list[_Waiting] = []
        self._leaving: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()

    def begin_step(self) -> None:
        """Forget what no backward pass has taken."""
        self._waiting.clear()

    def push(self, tensor: torch.Tensor) -> None:
        """Begin to copy a tensor to the host; its memory on the device is free after some more."""
        waiting = _Waiting(tensor, self.stream)
        self._waiting.append(waiting)
        self._leaving.append((tensor, self.stream.record_event()))
        if len(self._leaving) > self.AHEAD:
            gone, copied = self._leaving.popleft()
            torch.cuda.current_stream().wait_event(copied)
            del gone

    def pop(self) -> torch.Tensor:
        """The tensor that was pushed last, on the device again."""
        while self._leaving:
            gone, copied = self._leaving.popleft()
            torch.cuda.current_stream().wait_event(copied)
            del gone
        tensor = self._waiting.pop().take()
        for waiting in self._waiting[-self.AHEAD :]:
            waiting.fetch()
        return tensor


class _Waiting:
    """One tensor in host memory."""

    def __init__(self, tensor: torch.Tensor, stream: torch.cuda.Stream) -> None:
        self.stream, self._device = stream, tensor.device
        self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._back: torch.Tensor | None = None
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._copy.copy_(tensor, non_blocking=True)

    def fetch(self) -> None:
        """Begin to bring it back, once."""
        if self._back is not None:
            return
        self._back = torch.empty(self._copy.shape, dtype=self._copy.dtype, device=self._device)
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self._back.copy_(self._copy, non_blocking=True)
            self._done = self.stream.record_event()

    def take(self) -> torch.Tensor:
        """The tensor; the device's work from here on waits until it is there."""
        self.fetch()
        torch.cuda.current_stream().wait_event(self._done)
        assert self._back is not None
        return self._back
