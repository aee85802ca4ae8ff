"""A folder that is there whole or not at all: written as a hidden sibling, then renamed. [I/O]"""

import errno
import fcntl
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from trainer.errors import ConfigError, TrainError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


@contextmanager
def new_folder(target: Path, needed_bytes: int = 0) -> Iterator[Path]:
    """Within it, the folder to write into; at its end it has the name `target`, after any error it is gone. What a
    killed process has left is removed first. Raises ConfigError for a target in use and for too little room,
    TrainError for what cannot be written."""
    target = target.absolute()
    check_target(target)
    part = target.with_name(f".{target.name}.part")
    with _explained(target):
        descriptor = _claim(part)
        try:
            check_room(target.parent, needed_bytes)
            yield part
            check_target(target)
            part.rename(target)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        finally:
            os.close(descriptor)


def check_target(target: Path) -> None:
    """Raise ConfigError unless `target` is free, or an empty folder, in a folder that exists."""
    if target.is_dir() and not any(target.iterdir()):
        return
    if target.exists() or target.is_symlink():
        raise ConfigError(f"--to: got {target}, which is there already, allowed: a new or an empty folder")
    if not target.parent.is_dir():
        raise ConfigError(f"--to: got {target}, allowed: a folder in one that exists", f"mkdir -p {target.parent}")


def check_room(folder: Path, needed_bytes: int) -> None:
    """Raise ConfigError when a file system has less room than will be written."""
    free = shutil.disk_usage(folder).free
    if free < needed_bytes:
        raise ConfigError(
            f"--to: {needed_bytes / 1e9:.1f} GB are to be written, {folder} has {free / 1e9:.1f} GB free",
            "make room, or choose a folder on another disk",
        )


def _claim(part: Path) -> int:
    """An empty folder, locked for this process; the lock ends with it."""
    part.mkdir(exist_ok=True)
    descriptor = os.open(part, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConfigError(f"{part}: another process is writing there", "wait for it, or choose another --to") from error
    for path in part.iterdir():
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    return descriptor


@contextmanager
def _explained(target: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        number, reason = _system_error(error)
        if number is None:
            raise
        hint = "make room, then merge again" if number in FULL else "choose a folder that this user may write"
        raise TrainError(f"{target}: cannot be written: {reason}; nothing was left there", hint) from error


def _system_error(error: Exception) -> tuple[int | None, str]:
    """Number and text of what the system refused; libraries in Rust hide it in a text of their own."""
    if isinstance(error, OSError):  # numpy gives no number when less is written than it asked for
        return error.errno or errno.ENOSPC, error.strerror or str(error)
    hidden = re.search(r"(.*)\(os error (\d+)\)", str(error))
    return (int(hidden[2]), os.strerror(int(hidden[2]))) if hidden else (None, "")
