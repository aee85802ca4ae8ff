"""The code snapshot: the user's folder as it is, uncommitted changes too, by content hash.

What runs is what was hashed: a file that vanishes or changes between the hash and the copy stops the submit. Links
travel as links, so one that leads out of the folder leads nowhere in a pod.
"""

import gzip
import hashlib
import io
import os
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from launcher.codefiles import CodeFile, code_files, listed
from launcher.errors import LaunchError, SpecError

LARGE_BYTES = 10 * 2**20


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
        files = [CodeFile(name, (self.root / name).lstat().st_size) for name in self.files]
        return (f"code: {self.size / 2**20:.1f} MiB in {len(self.files)} files; "
                f".launchignore can leave some out; the biggest:\n{listed(files)}")


def take_snapshot(root: Path) -> Snapshot:
    """Look at `root` and hash it. Raises SpecError when it is no folder, absurdly large for code, or holds files that
    cannot be read or that are credentials."""
    if not root.is_dir():
        raise SpecError(f"code: got {root}, allowed: a folder")
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
    """A tar.gz with the same bytes for the same content: sorted, no times, no owners. Raises SpecError when a file is
    no longer as it was hashed."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name, known in zip(snapshot.files, snapshot.hashes, strict=True):
            try:
                info, data = _packed(snapshot.root / name, name)
            except OSError as error:
                raise _changed(snapshot, name) from error
            content = f"-> {info.linkname}" if info.issym() else hashlib.sha256(data).hexdigest()
            if f"{info.mode:o}\0{content}" != known:
                raise _changed(snapshot, name)
            tar.addfile(info, io.BytesIO(data))
    return gzip.compress(raw.getvalue(), mtime=0)


def copy_to(snapshot: Snapshot, target: Path) -> None:
    """Copy the files below `target`, which must not exist yet; complete or absent, never half there. Raises SpecError
    when a file is no longer as it was hashed, LaunchError when the copy cannot be written."""
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    try:
        part.mkdir(parents=True)
        for name, known in zip(snapshot.files, snapshot.hashes, strict=True):
            (part / name).parent.mkdir(parents=True, exist_ok=True)
            _copy(snapshot, name, part / name, known)
        part.replace(target)
    except OSError as error:
        raise LaunchError(f"{target}: the code cannot be copied: {error.strerror}") from error


def _copy(snapshot: Snapshot, name: str, target: Path, known: str) -> None:
    source = snapshot.root / name
    try:
        shutil.copy2(source, target, follow_symlinks=False)
    except OSError as error:
        if error.filename == str(source):
            raise _changed(snapshot, name) from error
        raise
    if _hash(target) != known:
        raise _changed(snapshot, name)


def _changed(snapshot: Snapshot, name: str) -> SpecError:
    return SpecError(f"code: {snapshot.root / name} was changed or removed while it was read",
                     f"try again when nothing writes there, or name it in {snapshot.root / '.launchignore'}")


def _packed(path: Path, name: str) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.mode = _mode(path)
    if path.is_symlink():
        info.type, info.linkname = tarfile.SYMTYPE, os.readlink(path)
        return info, b""
    data = path.read_bytes()
    info.size = len(data)
    return info, data


def _mode(path: Path) -> int:
    return 0o755 if path.lstat().st_mode & 0o100 else 0o644


def _hash(path: Path) -> str:
    """Whether a file may be run, and the hash of what it holds; where a link points."""
    if path.is_symlink():
        return f"{_mode(path):o}\0-> {os.readlink(path)}"
    with path.open("rb") as file:
        return f"{_mode(path):o}\0{hashlib.file_digest(file, 'sha256').hexdigest()}"
