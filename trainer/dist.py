"""This process among its peers. Reads the environment that torchrun sets, once."""

import contextlib
import fcntl
import os
import shutil
import socket
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch

from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.peers import CALL_S, Peers


@dataclass(frozen=True)
class Place:
    """Rank, world size and device of this process; how many `processes` its node has."""

    rank: int
    local_rank: int
    world: int
    device: torch.device
    processes: int = 1

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    @property
    def on_cpu(self) -> bool:
        """Whether there is no GPU in use."""
        return self.device.type == "cpu"


def find_place(config: TrainConfig) -> Place:
    """From torchrun's variables; alone without them. Raises ConfigError when GPUs were asked for
    that are not here."""
    rank, local, world, processes = (
        int(os.environ.get(name, default))
        for name, default in (("RANK", "0"), ("LOCAL_RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_WORLD_SIZE", "1"))
    )
    asked = int(os.environ.get("LAUNCH_GPUS_PER_NODE", "1" if torch.cuda.is_available() else "0"))
    if config.settings.device == "cpu" or asked == 0:
        return Place(rank, local, world, torch.device("cpu"), processes)
    if torch.cuda.device_count() <= local:
        raise ConfigError(
            f"resources.gpus_per_node: got {asked}, but this node shows {torch.cuda.device_count()} GPU(s)",
            "check the driver with nvidia-smi, or train on the CPU: --set train.settings.device=cpu",
        )
    torch.cuda.set_device(local)
    return Place(rank, local, world, torch.device("cuda", local), processes)


def find_peers(place: Place, end: Callable[[int, str], None]) -> Peers | None:
    """The other processes, over the store that torchrun's variables name; None when this process is alone."""
    if place.world == 1:
        return None
    from torch.distributed import TCPStore  # type: ignore[attr-defined]  # it is public, and documented

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])

    def connect() -> Any:
        socket.create_connection((address, port), CALL_S).close()  # TCPStore writes a page about a refused one
        return TCPStore(address, port, is_master=False, wait_for_workers=False, timeout=timedelta(seconds=CALL_S))

    return Peers(place.rank, place.world, connect, end)


def alone_environment() -> None:
    """DeepSpeed wants a rendezvous even for one process, and NCCL, which then has nothing to send, takes 0.4 GB less of
    the GPU with few channels of small buffers."""
    for name, value in (
        ("RANK", "0"),
        ("LOCAL_RANK", "0"),
        ("WORLD_SIZE", "1"),
        ("MASTER_ADDR", "127.0.0.1"),
        ("MASTER_PORT", "29500"),
        ("NCCL_MAX_CTAS", "4"),
        ("NCCL_BUFFSIZE", "65536"),
    ):
        os.environ.setdefault(name, value)


def load_ops(names: Sequence[str]) -> None:
    """Load DeepSpeed's ops for the host (`trainer.ds_config.host_ops` names them), compiling them the first time, one
    process after the other. Raises ConfigError where one of them cannot be compiled.

    torch guards each op by a file that a killed process leaves behind and for which all later ones wait for ever: it is
    removed when no process has it open. Our own lock ends with its process.
    """
    from deepspeed.accelerator import get_accelerator

    builders = [get_accelerator().create_op_builder(name) for name in names]
    cache = extensions_folder()
    try:
        cache.mkdir(parents=True, exist_ok=True)
        lock = (cache / ".launch-lock").open("w")
    except OSError:  # a folder of the image: nothing can be left behind in it
        return
    with lock as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        os.environ["PATH"] = _tools()
        for builder in builders:
            for left in filter(is_left_behind, cache.rglob(f"{builder.name}/lock")):
                left.unlink(missing_ok=True)
            _load(builder)


def is_left_behind(lock: Path) -> bool:
    """Whether no process of ours on this machine has this file open, as torch has the one that it holds."""
    if _is_open(lock):
        return False
    time.sleep(0.2)  # who has just closed it removes it now
    return lock.exists() and not _is_open(lock)


def _is_open(path: Path) -> bool:
    for held in Path("/proc").glob("[0-9]*/fd/*"):
        with contextlib.suppress(OSError):  # its process has closed it, or ended
            if held.samefile(path):
                return True
    return False


def _load(builder: Any) -> None:
    if builder.name == "async_io" and not builder.is_compatible(verbose=False):
        raise ConfigError(
            f"optimizer.deepspeed: got nvme, but {socket.gethostname()} has no libaio, which reads and writes it",
            "apt-get install libaio-dev, or offload to cpu",
        )
    builder.load(verbose=False)


def _tools() -> str:
    """PATH with this installation's ninja in front: another version of it would compile everything again."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"


def extensions_folder() -> Path:
    """Where torch keeps what it has compiled."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache/torch_extensions")


def missing_for_deepspeed() -> list[str]:
    """What DeepSpeed would die without on a CPU: it compiles its communication op, unless that was done before."""
    cache = extensions_folder()
    if any(cache.rglob("deepspeed_shm_comm_op.so")) if cache.is_dir() else False:
        return []
    return [name for name in ("g++", "ninja") if shutil.which(name, path=_tools()) is None]
