"""What DeepSpeed compiles for the host: which of it a run needs, and how it comes to be there. [I/O]"""

import contextlib
import fcntl
import os
import shutil
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError


def needed_ops(ds_config: dict[str, Any], *, on_cpu: bool) -> list[str]:
    """Names of DeepSpeed's builders for what works in the host: communication on a CPU, AdamW for states that live
    there, and reading and writing what lives on NVMe."""
    zero = ds_config.get("zero_optimization", {})
    states, weights = ((zero.get(key) or {}).get("device", "none") for key in ("offload_optimizer", "offload_param"))
    wanted = {"ShareMemCommBuilder": on_cpu, "CPUAdamBuilder": states != "none",
              "AsyncIOBuilder": "nvme" in (states, weights)}  # fmt: skip
    return [name for name, needed in wanted.items() if needed]


def load_ops(names: Sequence[str]) -> None:
    """Load DeepSpeed's ops for the host (`needed_ops` names them), compiling them the first time, one
    process after the other. Raises ConfigError where one of them cannot be compiled.

    torch guards each op by a file that a killed process leaves behind and for which all later ones wait for ever: it is
    removed when no process has it open. Our own lock ends with its process.
    """
    from deepspeed.accelerator import get_accelerator

    builders = [get_accelerator().create_op_builder(name) for name in names]
    require_libaio(builders)
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
            builder.load(verbose=False)


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


def require_libaio(builders: Sequence[Any]) -> None:
    """Raise ConfigError where one of these needs it and it is not there."""
    if any(builder.name == "async_io" and not builder.is_compatible(verbose=False) for builder in builders):
        raise ConfigError(
            f"optimizer.deepspeed: got nvme, but {socket.gethostname()} has no libaio, which reads and writes it",
            "apt-get install libaio-dev, or offload to cpu",
        )


def _tools() -> str:
    """PATH with this installation's ninja in front: another version of it would compile everything again."""
    return f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', os.defpath)}"


def extensions_folder() -> Path:
    """Where torch keeps what it has compiled."""
    return Path(os.environ.get("TORCH_EXTENSIONS_DIR") or Path.home() / ".cache/torch_extensions")


def missing_for_deepspeed() -> list[str]:
    """What DeepSpeed would die without on a CPU, where it compiles its communication op."""
    return [name for name in ("g++", "ninja") if shutil.which(name, path=_tools()) is None]
