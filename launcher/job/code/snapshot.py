"""The code snapshot: the user's folder as it is, uncommitted changes too, by content hash.

What runs is what was hashed: a file that vanishes or changes between the hash and the copy stops the submit. Links
travel as links.
"""

import gzip
import hashlib
import io
import os
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from launcher.errors import LaunchError, SpecError
from launcher.job.code.files import CodeFile, code_files, listed

LARGE_BYTES = 10 * 2**20
MAX_PACKED = 8 * 2**20  # what nine ConfigMaps carry


@dataclass(frozen=True)
class Snapshot:
    """Files of `root` (relative, sorted), the hash of each one's mode and content, and one over all of them."""

    root: Path
    files: tuple[str, ...]
    hashes: tuple[str, ...]
    size: int
    digest: str

    @property
    def is_large(self) -> bool:
        """Whether it is worth a word: code is rarely so large."""
        return self.size > LARGE_BYTES

    def described(self) -> str:
        """Its size, number of files and the biggest of them, in lines."""
        return (f"code: {self.size / 2**20:.1f} MiB in {len(self.files)} files; "
                f".launchignore can leave some out; the biggest:\n{self.biggest()}")

    def biggest(self) -> str:
        """The largest files and folders, one a line."""
        return listed([CodeFile(name, (self.root / name).lstat().st_size) for name in self.files])


def take_snapshot(root: Path) -> Snapshot:
    """Look at `root` and hash it. Raises SpecError when it is no folder, absurdly large for code, or holds files that
    cannot be read or that are credentials, or links that lead out of it."""
    if not root.is_dir():
        raise SpecError(f"code: must be a folder, not {root}")
    files, hashes, size = [], [], 0
    digest = hashlib.sha256()
    for file in code_files(root):
        try:
            found = _hash(root / file.name)
        except FileNotFoundError:  # it was there a moment ago, and is not part of the folder any more
            continue
        except OSError as error:
            raise SpecError(f"code: {root / file.name} cannot be read: {error.strerror}",
                            f"make it readable, or name it in {root / '.launchignore'}") from error
        digest.update(f"{file.name}\0{found}\0".encode("utf-8", "surrogateescape"))
        files.append(file.name)
        hashes.append(found)
        size += file.size
    return Snapshot(root, tuple(files), tuple(hashes), size, digest.hexdigest()[:16])


def archive(snapshot: Snapshot) -> bytes:
    """A tar.gz with the same bytes for the same content: sorted, no times, no owners; in GNU's format, which every tar
    reads. Raises SpecError when a file is no longer as it was hashed, and as soon as it gets too large for
    Kubernetes."""
    packed = _Bounded(MAX_PACKED)
    try:
        with (gzip.GzipFile(filename="", fileobj=packed, mode="wb", mtime=0) as raw,
              tarfile.open(fileobj=raw, mode="w", format=tarfile.GNU_FORMAT) as tar):
            for name, known in zip(snapshot.files, snapshot.hashes, strict=True):
                _pack(snapshot, name, tar, known)
    except _FullError as error:
        raise SpecError(f"code: {snapshot.root} has more than {MAX_PACKED / 2**20:.0f} MiB when packed, and code "
                        f"travels to Kubernetes in ConfigMaps, which hold no more; the biggest:\n{snapshot.biggest()}",
                        "leave data out in .launchignore and mount it (mounts:), or put the code into the image"
                        ) from error
    return packed.getvalue()


def copy_to(snapshot: Snapshot, target: Path) -> None:
    """Copy the files below `target`, which must not exist yet; complete or absent, never half there, and to be read
    only. Raises SpecError when a file is no longer as it was hashed, LaunchError when the copy cannot be written."""
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        for name, known in zip(snapshot.files, snapshot.hashes, strict=True):
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            _copy(snapshot, name, part / name, known)
            _protect(part / name)
        part.replace(target)
    except OSError as error:
        raise LaunchError(f"{target}: the code cannot be copied: {error.strerror}") from error


def is_copy(snapshot: Snapshot, folder: Path) -> bool:
    """Whether `folder` holds these files as they were hashed, and no others."""
    found = {os.path.relpath(os.path.join(top, name), folder)
             for top, folders, names in os.walk(folder)
             for name in (*names, *(name for name in folders if os.path.islink(os.path.join(top, name))))}
    if found != set(snapshot.files):
        return False
    return all(_hash(folder / name) == known for name, known in zip(snapshot.files, snapshot.hashes, strict=True))


def _copy(snapshot: Snapshot, name: str, target: Path, known: str) -> None:
    source = snapshot.root / name
    try:
        shutil.copy2(source, target, follow_symlinks=False)
    except OSError as error:
        if error.filename == str(source) and error.filename2 is None:  # with both it may be the target that is full
            raise _changed(snapshot, name) from error
        raise
    if _hash(target) != known:
        raise _changed(snapshot, name)


def _changed(snapshot: Snapshot, name: str) -> SpecError:
    return SpecError(f"code: {snapshot.root / name} was changed or removed while it was read",
                     f"try again when nothing writes there, or name it in {snapshot.root / '.launchignore'}")


def _protect(path: Path) -> None:
    """Nobody writes to what a run has begun with; folders stay as they are, so that the run can be removed."""
    if not path.is_symlink():
        path.chmod(path.stat().st_mode & ~0o222)


def _pack(snapshot: Snapshot, name: str, tar: tarfile.TarFile, known: str) -> None:
    path, info = snapshot.root / name, tarfile.TarInfo(name)
    try:
        info.mode = _mode(path)
        if path.is_symlink():
            info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)
            tar.addfile(info)
            content = f"-> {info.linkname}"
        else:
            with path.open("rb") as file:
                info.size, hashed = os.fstat(file.fileno()).st_size, _Hashed(file)
                tar.addfile(info, hashed)
            content = hashed.digest.hexdigest()
    except OSError as error:  # also when it became shorter meanwhile
        raise _changed(snapshot, name) from error
    if f"{info.mode:o}\0{content}" != known:
        raise _changed(snapshot, name)


class _Hashed:
    """A file, and the hash of what was read of it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.digest = hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """As of a file."""
        data = self._file.read(size)
        self.digest.update(data)
        return data


class _FullError(Exception):
    """More was written than may be."""


class _Bounded(io.BytesIO):
    """Bytes in memory, up to a limit."""

    def __init__(self, limit: int) -> None:
        super().__init__()
        self.limit = limit

    def write(self, data: Any, /) -> int:
        """Raises _FullError."""
        size = super().write(data)
        if self.tell() > self.limit:
            raise _FullError
        return size


def _mode(path: Path) -> int:
    return 0o755 if path.lstat().st_mode & 0o100 else 0o644


def _hash(path: Path) -> str:
    """Whether a file may be run, and the hash of what it holds; where a link points."""
    if path.is_symlink():
        return f"{_mode(path):o}\0-> {os.readlink(path)}"
    with path.open("rb") as file:
        return f"{_mode(path):o}\0{hashlib.file_digest(file, 'sha256').hexdigest()}"
