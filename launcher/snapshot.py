"""The code snapshot: the user's folder as it is, uncommitted changes too, by content hash.

`.gitignore` and `.launchignore` (same rules, in any folder) leave files out; `.git` never travels.
"""

import gzip
import hashlib
import io
import os
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import SpecError

MAX_FILES = 50_000
MAX_BYTES = 1 << 30
_IGNORE_FILES = (".gitignore", ".launchignore")


@dataclass(frozen=True)
class Snapshot:
    """Files of `root` (relative, sorted) and the hash of their names, modes and contents."""

    root: Path
    files: tuple[str, ...]
    size: int
    digest: str

    def biggest(self, count: int = 5) -> list[tuple[str, int]]:
        """The largest files with their bytes, largest first."""
        sizes = ((name, (self.root / name).lstat().st_size) for name in self.files)
        return sorted(sizes, key=lambda item: -item[1])[:count]


def take_snapshot(root: Path) -> Snapshot:
    """Look at `root` and hash it. Raises SpecError when it is no folder, or absurdly large for code."""
    if not root.is_dir():
        raise SpecError(f"code: got {root}, allowed: a folder")
    files = _files(root)
    size = sum((root / name).lstat().st_size for name in files)
    found = Snapshot(root, tuple(files), size, "")
    if len(files) > MAX_FILES or size > MAX_BYTES:
        raise SpecError(f"code: got {root} with {len(files)} files, {size / 2**20:.0f} MiB, "
                        f"allowed: {MAX_FILES} files, {MAX_BYTES >> 20} MiB\n{offenders(found)}",
                        "leave them out in .launchignore, and mount data instead")
    digest = hashlib.sha256()
    for name in files:
        digest.update(f"{name}\0{_mode(root / name):o}\0{_content_hash(root / name)}\0".encode())
    return Snapshot(root, tuple(files), size, digest.hexdigest()[:16])


def offenders(snapshot: Snapshot) -> str:
    """The biggest files, one a line, for messages."""
    return "\n".join(f"  {size / 2**20:8.1f} MiB  {name}" for name, size in snapshot.biggest())


def archive(snapshot: Snapshot) -> bytes:
    """A tar.gz with the same bytes for the same content: sorted, no times, no owners."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for name in snapshot.files:
            info = tar.gettarinfo(str(snapshot.root / name), arcname=name)
            info.mtime = info.uid = info.gid = 0
            info.uname = info.gname = ""
            info.mode = _mode(snapshot.root / name)
            if info.isreg():
                with (snapshot.root / name).open("rb") as file:
                    tar.addfile(info, file)
            elif info.issym():
                tar.addfile(info)
    return gzip.compress(raw.getvalue(), mtime=0)


def copy_to(snapshot: Snapshot, target: Path) -> None:
    """Copy the files below `target`, which must not exist yet; complete or absent, never half there."""
    part = target.with_name(f"{target.name}.part")
    shutil.rmtree(part, ignore_errors=True)
    for name in snapshot.files:
        (part / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(snapshot.root / name, part / name, follow_symlinks=False)
    part.mkdir(exist_ok=True)
    part.replace(target)


def _files(root: Path) -> list[str]:
    found: list[str] = []
    rules: list[tuple[str, object]] = []
    for folder, folders, names in os.walk(root):
        here = os.path.relpath(folder, root).replace(os.sep, "/")
        prefix = "" if here == "." else f"{here}/"
        rules += [(prefix, rule) for rule in _read_rules(Path(folder))]
        folders[:] = sorted(name for name in folders if name != ".git" and not _ignored(f"{prefix}{name}/", rules))
        links = [name for name in folders if os.path.islink(os.path.join(folder, name))]
        kept = (name for name in (*names, *links) if not _ignored(f"{prefix}{name}", rules))
        found += [f"{prefix}{name}" for name in kept if _is_code(Path(folder, name))]
        if len(found) > 4 * MAX_FILES:
            break
    return sorted(found)


def _is_code(path: Path) -> bool:
    """Not sockets, pipes and devices: reading one could wait for ever."""
    return path.is_symlink() or path.is_file()


def _read_rules(folder: Path) -> list[object]:
    lines = [line for name in _IGNORE_FILES if (folder / name).is_file()
             for line in (folder / name).read_text(encoding="utf-8", errors="replace").splitlines()]
    if not lines:
        return []
    import pathspec  # costs 30 ms, which a folder without ignore files need not pay

    return [pathspec.GitIgnoreSpec.from_lines(lines)]


def _ignored(path: str, rules: list[tuple[str, object]]) -> bool:
    return any(path.startswith(prefix) and rule.match_file(path[len(prefix):]) for prefix, rule in rules)  # type: ignore[attr-defined]


def _mode(path: Path) -> int:
    return 0o755 if path.lstat().st_mode & 0o100 else 0o644


def _content_hash(path: Path) -> str:
    if path.is_symlink():
        return f"-> {os.readlink(path)}"
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
