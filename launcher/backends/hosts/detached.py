"""A run's script, detached on this machine: all its processes hold the lock of the run folder as long as they live."""

import fcntl
import os
from pathlib import Path

from launcher.backends.processes import start_detached
from launcher.errors import BackendError


def start_script(folder: Path, cwd: Path, environ: dict[str, str]) -> int:
    """Start the folder's render.sh in a session of its own; it goes on when this process ends. Returns its pid. Raises
    BackendError."""
    try:
        with (folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # waits for a look of `is_alive`, never for a run: the folder is new
            return start_detached(["bash", str(folder / "render.sh")], cwd=cwd, env=environ, keep_fd=lock.fileno())
    except OSError as error:
        raise BackendError(f"the job could not be started: {error}") from error


def is_alive(folder: Path) -> bool:
    """Whether any process of the run lives. A shared lock, so that those who look at once do not see each other."""
    try:
        descriptor = os.open(folder / "lock", os.O_RDONLY)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False
