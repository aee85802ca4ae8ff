"""A throw-away Slurm of four nodes on this machine, for tests."""

import os
import random
import re
import shutil
import socket
import subprocess
from contextlib import suppress
from pathlib import Path

# Beside the repository; a copy in tests/tools wins.
PLACES = (Path(__file__).parent / "tools/slurm-up", Path(__file__).parents[2] / "shared/tools/slurm-up")
NODES = 4


def missing() -> str | None:
    """Why there can be no Slurm here, or None."""
    absent = [name for name in ("slurmctld", "slurmd", "sbatch", "munged") if not shutil.which(name)]
    if absent:
        return f"no {', '.join(absent)} on PATH (make test-deps installs them)"
    if os.geteuid():
        return "a throw-away Slurm needs root"
    return None if script() else f"no {PLACES[-1]}"


def script() -> Path | None:
    """The program that starts and stops the cluster."""
    return next((path for path in PLACES if path.is_file()), None)


def start(folder: Path, **knobs: str) -> dict[str, str]:
    """Start it, or what of it has died; returns the variables with which Slurm's commands find it. `knobs` are those of
    slurm-up, such as SLURM_UP_EXTRA."""
    knobs = {"SLURM_UP_PORT": str(_first_port(folder)), **knobs}
    started = subprocess.run([str(script()), str(folder), str(NODES)], capture_output=True, text=True, timeout=120,
                             env={**os.environ, **knobs})
    assert started.returncode == 0, f"slurm-up failed: {started.stderr}"
    return dict(re.findall(r"^export (\w+)=(\S+)$", started.stdout, re.MULTILINE))


def stop(folder: Path) -> None:
    """Stop it, and every job on it."""
    subprocess.run([str(script()), "--down", str(folder)], capture_output=True, timeout=120, check=True)


def _first_port(folder: Path) -> int:
    """The first of the cluster's hundred ports: the one it has, or one of a hundred that nobody uses. What slurm-up
    would draw from the folder's name may be another cluster's."""
    if (config := folder / "slurm.conf").exists():
        return int(re.search(r"^SlurmctldPort=(\d+)$", config.read_text(), re.MULTILINE)[1])
    bands = list(range(10000, 20000, 100))  # above lies what launch draws rendezvous ports from
    random.shuffle(bands)
    return next(first for first in bands if all(map(_is_free, (*range(first, first + NODES + 1), first + 99))))


def _is_free(port: int) -> bool:
    with suppress(OSError), socket.create_server(("127.0.0.1", port)):
        return True
    return False
