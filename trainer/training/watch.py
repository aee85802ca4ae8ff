"""What makes training slow, in words: each is said once. What is measured comes from the caller, what the machine says
is read here."""

import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from statistics import median_low
from typing import Any

import torch

from trainer.node.ranks import Place

LOADING_SHARE = 0.1
SLOWER = 0.2
NEARLY_FULL = 0.9
FIRST_INTERVALS = 2  # in which kernels are compiled: a job's first step, and those up to its second line
SOCKETS = {"NCCL_IB_DISABLE": "1", "NCCL_NET": "socket"}  # what makes NCCL use sockets
SHARED_MEMORY = Path("/dev/shm")  # noqa: S108  # it is looked at only


class Watch:
    """Tells each cause once, in a line. `processes`: those of a node."""

    def __init__(self, tell: Callable[[str], None], processes: int = 1) -> None:
        self._tell, self._processes = tell, processes
        self._told: set[str] = set()
        self._intervals = 0
        self._suspected: set[str] = set()
        self._compiled: dict[str, float] = {}

    def compiled(self, kernel: str, seconds: float) -> None:
        """A kernel was compiled, while training waited."""
        self._compiled[kernel] = self._compiled.get(kernel, 0.0) + seconds

    def warn(self, cause: str, text: str | None) -> None:
        """`text` is None where all is well."""
        if text and cause not in self._told:
            self._told.add(cause)
            self._tell(f"warning: {text}")

    def interval(self, step_s: float, waited_s: Sequence[float], forward_s: Sequence[float]) -> None:
        """Judge the mean step since the last log line: how long it took, and on each rank how much of it went by until
        the batches were there and in forward passes. What is so twice in a row is told; the first interval, in which
        everything is new, does not count."""
        self._intervals += 1
        compiled, self._compiled = self._compiled, {}
        if self._intervals > FIRST_INTERVALS:
            self.warn("compiling", slow_compiling(compiled))
        if self._intervals == 1:
            return
        found = dict(self._slow(step_s, waited_s, forward_s))
        for cause in self._suspected & found.keys():
            self.warn(cause, found[cause])
        self._suspected = set(found)
        for cause, text in full_memory():
            self.warn(cause, text)

    def _slow(
        self, step_s: float, waited_s: Sequence[float], forward_s: Sequence[float]
    ) -> Iterator[tuple[str, str]]:
        rank = max(range(len(waited_s)), key=waited_s.__getitem__)
        if text := slow_loading(self._name(rank), step_s, waited_s[rank]):
            yield "loading", text
        for rank, ratio in slow_ranks(forward_s):
            yield f"rank {rank}", (
                f"{self._name(rank)} is slower than the others, which wait for it: its forward passes take "
                f"{forward_s[rank]:.2f} s a step, {ratio - 1:.0%} more than the median; look at its GPU "
                "(nvidia-smi -q -d PERFORMANCE) and at what else runs on that machine"
            )

    def _name(self, rank: int) -> str:
        return f"rank {rank} (node {rank // self._processes})"


def begin_watch(place: Place, dtype: str, tell: Callable[[str], None]) -> Watch:
    """On the look-out for what slows training down; what a GPU's precision and network are is looked at now."""
    watch = Watch(tell, place.processes)
    if not place.on_cpu:
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        watch.warn("precision", slow_precision(dtype, torch.cuda.get_device_name(), has_bf16=has_bf16))
        watch.warn("network", slow_network(os.environ, place.world // place.processes))
        tell_of_kernels(watch.compiled)
    return watch


def tell_of_kernels(compiled: Callable[[str, float], None]) -> None:
    """Have Triton say which kernels it compiles, and how long that takes in seconds, where it can (since 3.4)."""
    if find_spec("triton") is None or find_spec("triton.knobs") is None:
        return
    from triton import knobs

    def listen(*, src: Any, times: Any, cache_hit: bool, **_: Any) -> None:
        if not cache_hit:
            compiled(src.name, times.total / 1e6)

    knobs.compilation.listener = listen


def slow_compiling(compiled: Mapping[str, float]) -> str | None:
    """Whether kernels, by name, were compiled in the midst of training."""
    if not compiled:
        return None
    return (
        f"training waited {sum(compiled.values()):.1f} s for Triton to compile {', '.join(sorted(compiled))} for a "
        "shape that had not come before; with data.pack all rows are alike"
    )


def slow_loading(name: str, step_s: float, waited_s: float) -> str | None:
    """Whether a rank waits for its batches longer than a tenth of a step."""
    if waited_s <= LOADING_SHARE * step_s:
        return None
    return (
        f"data loading takes {waited_s / step_s:.0%} of the step time on {name} ({waited_s:.3f} of {step_s:.3f} s a "
        "step); put data.cache_dir on a faster file system"
    )


def slow_ranks(forward_s: Sequence[float]) -> Iterator[tuple[int, float]]:
    """The ranks whose forward passes take over 20 % longer than the median of all, and how many times as long.

    Whole steps would not tell: all ranks wait for the slowest one before a step ends. In forward passes nobody waits
    (but under ZeRO-3, where all look alike).
    """
    usual = median_low(forward_s)
    for rank, seconds in enumerate(forward_s):
        if len(forward_s) > 1 and usual > 0 and seconds > (1 + SLOWER) * usual:
            yield rank, seconds / usual


def slow_precision(dtype: str, card: str, *, has_bf16: bool) -> str | None:
    """Whether a card computes in a precision that its matrix units are not made for."""
    if dtype == "fp32":
        return f"model.dtype is fp32: {card} computes several times faster in bf16"
    if not has_bf16:
        return f"{card} has no bf16 units and emulates bf16, which is slow; cards since Ampere (2020) have them"
    return None


def slow_network(
    environ: Mapping[str, str], nodes: int, system: Path = Path("/sys"), devices: Path = Path("/dev")
) -> str | None:
    """Whether NCCL has only sockets between the nodes, as far as can be known here: who names a network of NCCL's or a
    plug-in is trusted."""
    asked = next((name for name, value in SOCKETS.items() if environ.get(name, "").lower() == value), None)
    if asked:
        why = f"{asked}={environ[asked]} is set"
    elif environ.get("NCCL_NET") or environ.get("NCCL_NET_PLUGIN", "none") != "none":
        return None
    else:
        why = _no_infiniband(system, devices)
    if nodes == 1 or not why:
        return None
    return f"NCCL talks between the nodes over sockets instead of InfiniBand: {why}"


def _no_infiniband(system: Path, devices: Path) -> str:
    """Why NCCL cannot use any; empty where it can."""
    ports = list(system.glob("class/infiniband/*/ports/*/state"))
    if not ports:
        return "this node shows no InfiniBand or RoCE device (/sys/class/infiniband)"
    if not any("ACTIVE" in _text(port) for port in ports):
        return "no port of this node's InfiniBand devices is active"
    if not list(devices.glob("infiniband/uverbs*")):
        return "this container may not use the node's InfiniBand devices (/dev/infiniband is missing)"
    return ""


def full_memory(
    shared: Path = SHARED_MEMORY, meminfo: Path = Path("/proc/meminfo")
) -> Iterator[tuple[str, str]]:
    """(cause, words) for shared memory, over which processes of a node talk, and swap, when nine tenths are used."""
    if shared.is_dir():
        usage = shutil.disk_usage(shared)
        if usage.used > NEARLY_FULL * usage.total:
            yield "shared memory", (
                f"{shared} is nearly full ({usage.free / 2**30:.1f} of {usage.total / 2**30:.1f} GiB free): NCCL and "
                "gloo fail without it; give the container more"
            )
    found = {line.split(":")[0]: int(line.split()[1]) for line in _text(meminfo).splitlines()}
    total, free = (found.get(name, 0) / 2**20 for name in ("SwapTotal", "SwapFree"))
    if total and total - free > NEARLY_FULL * total:
        yield "swap", f"swap is nearly full ({free:.1f} of {total:.1f} GiB free): this machine has too little memory"


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except OSError:
        return ""
