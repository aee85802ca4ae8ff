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
class ActivationPolicy:
    """`name`: a key of POLICIES. `host`: where kept tensors wait; None: on the device."""

    name: str
    host: "CpuOffload | None" = None

    def keeps(self, what: str) -> bool:
        """Whether a layer keeps this."""
        return what in POLICIES[self.name]


def policy_named(name: str, device: torch.device) -> ActivationPolicy:
    """`offload` waits in host memory where there is a GPU to free."""
    return ActivationPolicy(name, CpuOffload(device) if name == "offload" and device.type == "cuda" else None)


class CpuOffload:
    """Tensors of one step in pinned host memory: they come back in the opposite order, each while the GPU computes with
    the one before it. The host memory is kept from step to step: getting it takes long."""

    AHEAD = 2  # a layer keeps so many this way

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)
        self._slots: list[_Slot] = []
        self._used = 0
        self._leaving: deque[tuple[torch.Tensor, torch.cuda.Event]] = deque()

    def begin_step(self) -> None:
        """Forget what no backward pass has taken."""
        self._used = 0

    def push(self, tensor: torch.Tensor) -> None:
        """Begin to copy a tensor to the host; its memory on the device is free after some more."""
        if self._used == len(self._slots):
            self._slots.append(_Slot(self.stream))
        slot = self._slots[self._used]
        self._used += 1
        self._leaving.append((tensor, slot.store(tensor)))
        if len(self._leaving) > self.AHEAD:
            self._let_go()

    def pop(self) -> torch.Tensor:
        """The tensor that was pushed last, on the device again."""
        while self._leaving:
            self._let_go()
        self._used -= 1
        tensor = self._slots[self._used].take()
        for slot in self._slots[max(0, self._used - self.AHEAD) : self._used]:
            slot.fetch()
        return tensor

    def _let_go(self) -> None:
        """The device's work from here on, which may get this memory, waits until it was copied."""
        _, copied = self._leaving.popleft()
        torch.cuda.current_stream().wait_event(copied)


class _Slot:
    """CpuOffload memory for one tensor of a step."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream = stream
        self._copy = torch.empty(0)
        self._back: torch.Tensor | None = None
        self._ready, self._done = torch.cuda.Event(), torch.cuda.Event()

    def store(self, tensor: torch.Tensor) -> torch.cuda.Event:
        """Begin to copy it here; the event comes when that is done."""
        if self._copy.shape != tensor.shape or self._copy.dtype != tensor.dtype:
            self._copy = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._back = None
        self._move(tensor, self._copy)
        self._device = tensor.device
        return self._done

    def fetch(self) -> None:
        """Begin to bring it back, once."""
        if self._back is None:
            self._back = torch.empty(self._copy.shape, dtype=self._copy.dtype, device=self._device)
            self._move(self._copy, self._back)

    def take(self) -> torch.Tensor:
        """The tensor; the device's work from here on waits until it is there."""
        self.fetch()
        torch.cuda.current_stream().wait_event(self._done)
        back, self._back = self._back, None
        assert back is not None
        return back

    def _move(self, source: torch.Tensor, target: torch.Tensor) -> None:
        """Beside the device's other work, but after what it was given so far."""
        self._ready.record()
        self.stream.wait_event(self._ready)
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
            self._done.record()
