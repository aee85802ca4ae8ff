"""A throw-away Slurm of four nodes on this machine, for tests."""

import os
import re
import shutil
import subprocess
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
    started = subprocess.run([str(script()), str(folder), str(NODES)], capture_output=True, text=True, timeout=120,
                             env={**os.environ, **knobs})
    assert started.returncode == 0, f"slurm-up failed: {started.stderr}"
    return dict(re.findall(r"^export (\w+)=(\S+)$", started.stdout, re.MULTILINE))


def stop(folder: Path) -> None:
    """Stop it, and every job on it."""
    subprocess.run([str(script()), "--down", str(folder)], capture_output=True, timeout=120, check=True)
