"""Whether a job fits: its estimate (trainer/sizing/estimate.py) against the cards, the nodes' memory and /dev/shm.

Reads at most one config.json, and asks neither a cluster nor the hub. What cannot be known is said to be so; it never
makes a job one that does not fit. GB are 10^9 bytes.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from launcher.job.prepared import Prepared
from launcher.job.quantities import size_bytes
from launcher.job.spec import Resources
from trainer.config.job import TrainConfig
from trainer.sizing.estimate import (
    HUB_SHAPES,
    TOLERANCE,
    Estimate,
    ModelShape,
    Placement,
    expert_count,
    new_shape,
    shape_of_config,
)

Word = Literal["fits", "does not fit", "cannot tell"]


@dataclass(frozen=True)
class Limit:
    """Bytes that there are, and who says so."""

    size: int
    source: str

    def __str__(self) -> str:
        return f"{gigabytes(self.size)} ({self.source})"


@dataclass(frozen=True)
class Limits:
    """What a GPU, a node and its /dev/shm hold; None: not known."""

    gpu: Limit | None
    host: Limit | None
    shm: Limit | None


@dataclass(frozen=True)
class Fit:
    """The verdict, and what speaks against fitting; `is_close`: it fits, or does not, by less than the tolerance."""

    word: Word
    reasons: tuple[str, ...] = ()
    is_close: bool = False


@dataclass(frozen=True)
class Known:
    """A shape and where it is from; without a shape, why there is none. `experts`: those of a layer, of a mixture."""

    shape: ModelShape | None
    source: str
    experts: int = 0


def gigabytes(size: int) -> str:
    """`10.61 GB`."""
    return f"{size / 1e9:.2f} GB"


def find_shape(config: TrainConfig, job_dir: Path) -> Known:
    """The model's shape: from `model.shape`, from the config.json of the checkpoint's folder, or by its name."""
    path = config.model.path
    if path is None:
        return Known(new_shape(config.model.shape), "model.shape")
    file = _config_file(path, job_dir)
    if file:
        return _read_shape(file)
    if path in HUB_SHAPES:
        return Known(HUB_SHAPES[path], f"{path}, known by its name")
    same = [name for name in HUB_SHAPES if name.partition("/")[2] == Path(path).name]
    if same:
        return Known(HUB_SHAPES[same[0]], f"{same[0]}, by the name of the folder {path}")
    return Known(None, f"model.path {path}: no folder with a config.json here, and no name of a known model")


def _config_file(path: str, job_dir: Path) -> Path | None:
    try:
        file = job_dir / Path(path).expanduser() / "config.json"
        return file if file.is_file() else None
    except (OSError, RuntimeError, ValueError):  # a name that is too long, an unknown ~user, a NUL character
        return None


def _read_shape(file: Path) -> Known:
    raw = None
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
        return Known(shape_of_config(raw if isinstance(raw, dict) else {}), str(file))
    except (OSError, ValueError, RecursionError) as error:  # JSON and UTF-8 errors are ValueErrors
        return Known(None, f"{file}: {error}", expert_count(raw) if isinstance(raw, dict) else 0)


def find_limits(prepared: Prepared, gpu_memory: str | None) -> Limits:
    """From `--gpu-memory` or the cluster's profile, and from what the job asks of each node. Raises ValueError."""
    resources, profile = prepared.job.resources, prepared.profile
    gpu = _limit(gpu_memory, "--gpu-memory") or _limit(profile.gpu_memory, f"gpu_memory of cluster {prepared.cluster}")
    return Limits(gpu, _limit(resources.memory_per_node, "resources.memory_per_node"),
                  _limit(resources.shm, "resources.shm"))


def _limit(text: str | None, source: str) -> Limit | None:
    """`80GiB` and `80Gi` are the same."""
    return None if text is None else Limit(size_bytes(text.removesuffix("B")), f"{source}: {text}")


def placement_of(resources: Resources, config: TrainConfig) -> Placement:
    """Where the trainer's processes are; without GPUs one a node."""
    on_gpu = resources.gpus_per_node > 0 and config.settings.device != "cpu"
    return Placement(resources.nodes, max(1, resources.gpus_per_node), on_gpu)


def check_fit(found: Estimate, limits: Limits, *, on_gpu: bool) -> Fit:
    """Compare. Within the estimate's tolerance of a card's memory nobody can tell."""
    wrong = _too_small(found, limits, on_gpu=on_gpu)
    if wrong:
        return Fit("does not fit", tuple(wrong))
    if on_gpu and limits.gpu is None:
        return Fit("cannot tell", ("the memory of a GPU is not known: give --gpu-memory, or gpu_memory in the "
                                   "cluster's profile",))
    if not on_gpu and limits.host is None:
        return Fit("cannot tell", ("the memory of a node is not known: give resources.memory_per_node",))
    if on_gpu and limits.gpu and found.gpu.total > limits.gpu.size * (1 - TOLERANCE):
        return Fit("cannot tell", (f"each GPU: {gigabytes(found.gpu.total)} of {limits.gpu}, and the estimate is good "
                                   f"to {TOLERANCE:.0%}",), is_close=True)
    return Fit("fits")


def _too_small(found: Estimate, limits: Limits, *, on_gpu: bool) -> list[str]:
    wrong = []
    if on_gpu and limits.gpu and found.gpu.total > limits.gpu.size * (1 + TOLERANCE):
        wrong.append(f"each GPU needs {gigabytes(found.gpu.total)}, but has {limits.gpu}")
    if limits.host and found.host > limits.host.size:
        wrong.append(f"each node needs {gigabytes(found.host)} at least, but has {limits.host}")
    if limits.shm and found.shm > limits.shm.size:
        wrong.append(f"each node needs {gigabytes(found.shm)} of /dev/shm at least, but has {limits.shm}")
    return wrong
