"""This process among its peers. Reads the environment that torchrun sets, once."""

import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch

from trainer.config.job import TrainConfig
from trainer.errors import ConfigError
from trainer.node.output import show
from trainer.node.peers import CALL_S, Peers


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


def printer(place: Place) -> Callable[[str], None]:
    """Prints what rank 0 says, and step lines of every other node's first rank, so that its log shows life."""

    def tell(text: str) -> None:
        if place.is_main or (place.local_rank == 0 and text.startswith("step ")):
            show(text)

    return tell
