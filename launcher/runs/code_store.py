"""Code snapshots below `$LAUNCH_HOME/code`, each once: `code/DIGEST` is read-only, and `runs/ID/code` of every run that
uses it is a link to it. These links are the only count of its users.

Links are made and copies removed under one lock (flock), which a killed process loses. Where the file system has none,
a run gets a copy of its own, as it does when somebody has changed the stored one.
"""

import fcntl
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from secrets import token_hex

from launcher.errors import LaunchError
from launcher.job.code.snapshot import Snapshot, copy_to, is_copy

LINK = "code"
ABANDONED_S = 3600  # an unfinished copy so old belongs to a submit that was killed


class CodeStore:
    """The snapshots of one launch home."""

    def __init__(self, home: Path) -> None:
        self.root = home / "code"
        self._runs = home / "runs"

    def use(self, snapshot: Snapshot, run_dir: Path) -> None:
        """Let a run find the snapshot as `code` in its folder. Raises SpecError when a file is no longer as it was
        hashed, LaunchError when the copy cannot be written."""
        stored = self.root / snapshot.digest
        if not stored.exists():
            self._add(snapshot, stored)
        with self._locked() as locked:
            if locked and is_copy(snapshot, stored):
                (run_dir / LINK).symlink_to(os.path.relpath(stored, run_dir))
                return
        copy_to(snapshot, run_dir / LINK)

    def unused(self) -> list[str]:
        """Digests that no run needs, and unfinished copies that nobody will finish."""
        if not self.root.is_dir():
            return []
        used = {os.path.basename(os.readlink(link)) for link in self._runs.glob(f"*/{LINK}") if link.is_symlink()}
        return sorted(path.name for path in self.root.iterdir() if path.is_dir() and (
            _is_abandoned(path) if path.name.startswith(".") else path.name not in used))

    def sweep(self) -> None:
        """Remove what `unused` names."""
        with self._locked() as locked:
            for name in self.unused() if locked else ():
                away = self.root / f".{name.lstrip('.')}.{token_hex(4)}.gone"
                (self.root / name).rename(away)  # at once: what is half removed has no digest for a name
                _remove(away)

    def _add(self, snapshot: Snapshot, stored: Path) -> None:
        """Copy it, and give the copy its name when it is whole. Another process may have done so first."""
        try:
            self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise LaunchError(f"{self.root}: the code cannot be copied: {error.strerror}") from error
        part = self.root / f".{snapshot.digest}.{token_hex(4)}"
        try:
            copy_to(snapshot, part)
            for folder, _, _ in os.walk(part):
                os.chmod(folder, os.stat(folder).st_mode & ~0o222)  # else a run could add modules to all others' code
            with self._locked() as locked:
                if locked and not stored.exists():
                    part.rename(stored)
        finally:
            for left in (part, part.with_name(f"{part.name}.part")):
                _remove(left)

    @contextmanager
    def _locked(self) -> Iterator[bool]:
        """Hold the lock; False where there is none to be had."""
        try:
            file = (self.root / "lock").open("w")
        except OSError:
            yield False
            return
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                yield False
                return
            yield True


def _is_abandoned(path: Path) -> bool:
    try:
        return path.stat().st_mtime < time.time() - ABANDONED_S
    except FileNotFoundError:
        return False


def _remove(folder: Path) -> None:
    """Remove a folder of read-only folders, if it is there."""
    for path, _, _ in os.walk(folder):
        os.chmod(path, 0o700)
    shutil.rmtree(folder, ignore_errors=True)
