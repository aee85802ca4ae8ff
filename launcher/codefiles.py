"""Which files of a folder are code: the walk, the ignore files, and what must not be shipped.

`.gitignore` and `.launchignore` have the same rules and may stand in any folder; the deepest and the last word count,
so a `!name` in `.launchignore` takes in what `.gitignore` leaves out. `.git` never travels; links are not followed.
"""

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.errors import SpecError
from launcher.secrets import assigned_secrets, token_shape

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

# Code is a few megabytes; what is larger is data or results that were not left out.
MAX_BYTES = 500 * 2**20
MAX_FILES = 100_000
ENOUGH_BYTES = 20 * 2**30
_IGNORE_FILES = (".gitignore", ".launchignore")

# Names, in lower case, of files that hold credentials; with a slash the folder counts too.
_CREDENTIALS = {
    ".env", ".netrc", "_netrc", ".pgpass", ".git-credentials", ".pypirc", ".dockercfg", "kubeconfig", "secrets.env",
    "id_rsa", "id_dsa", "id_ecdsa", "id_ed25519", ".aws/credentials", ".kube/config", ".docker/config.json",
    "huggingface/token", ".huggingface/token",
}  # fmt: skip
_KEY_STORES = (".p12", ".pfx", ".kdbx", ".keytab")
# Of these, what is inside decides: a certificate may be shipped, a private key may not.
_LOOKED_INTO = (".pem", ".key", ".env", ".npmrc", ".json")
_LOOK_BYTES = 1 << 16
_MODELS = ("example", "sample", "template", "dist", "defaults")


@dataclass(frozen=True)
class CodeFile:
    """A file, relative to the folder. `insisted`: an ignore file names it with `!`."""

    name: str
    size: int
    insisted: bool = False


Rules = tuple[tuple[str, "GitIgnoreSpec"], ...]


def code_files(root: Path) -> list[CodeFile]:
    """The files below `root`, sorted. Raises SpecError when they are absurdly many or large, or hold credentials."""
    if root == Path("/"):
        raise SpecError("code: got /, allowed: a folder of code, not a whole machine")
    found: list[CodeFile] = []
    size = 0
    for file in _walk(root):
        found.append(file)
        size += file.size
        if len(found) > MAX_FILES or size > ENOUGH_BYTES:  # somebody's home folder: nobody waits for the rest
            break
    if len(found) > MAX_FILES or size > MAX_BYTES:
        raise _too_much(root, found, size)
    credentials = [file.name for file in found if not file.insisted and file.size and _holds_credentials(root, file)]
    if credentials:
        insist = f"(a line such as !/{credentials[0]} there ships it all the same)"
        raise SpecError(f"code: got {', '.join(credentials)} in {root}, allowed: code without credentials",
                        f"{_leave_out(root, credentials)} {insist}")
    return sorted(found, key=lambda file: file.name)


def biggest(files: Sequence[CodeFile], count: int = 5) -> list[tuple[str, int, int]]:
    """Files and second-level folders with their bytes and number of files, largest first."""
    sizes: Counter[str] = Counter()
    numbers: Counter[str] = Counter()
    for file in files:
        parts = file.name.split("/", 2)
        group = f"{parts[0]}/{parts[1]}/" if len(parts) == 3 else file.name
        sizes[group] += file.size
        numbers[group] += 1
    return [(group, size, numbers[group]) for group, size in sizes.most_common(count)]


def listed(files: Sequence[CodeFile]) -> str:
    """The biggest, one a line, for messages."""
    return "\n".join(f"  {size / 2**20:8.1f} MiB  {name}" + (f" ({number} files)" if name.endswith("/") else "")
                     for name, size, number in biggest(files))


def _too_much(root: Path, found: list[CodeFile], size: int) -> SpecError:
    more = "at least " if len(found) > MAX_FILES or size > ENOUGH_BYTES else ""
    # what has most files, when it is their number
    worst = biggest(found if size > MAX_BYTES else [CodeFile(file.name, 1) for file in found])[0][0]
    return SpecError(f"code: got {root} with {more}{len(found)} files, {size / 2**20:.0f} MiB, "
                     f"allowed: {MAX_FILES} files, {MAX_BYTES >> 20} MiB\n{listed(found)}",
                     f"mount data instead, and {_leave_out(root, [worst])}")


def _leave_out(root: Path, names: Sequence[str]) -> str:
    lines = shlex.join(f"/{name}" for name in names)
    return f"leave it out: printf '%s\\n' {lines} >>{shlex.quote(str(root / '.launchignore'))}"


def _walk(root: Path) -> Iterator[CodeFile]:
    pending: list[tuple[str, Rules]] = [("", ())]
    while pending:
        prefix, above = pending.pop()
        entries = _entries(root, prefix)
        rules = (*above, *_own_rules(root, prefix, {entry.name for entry in entries}))
        for entry in entries:
            path, is_folder = prefix + entry.name, entry.is_dir(follow_symlinks=False)
            ignored = _ignored(f"{path}/" if is_folder else path, rules)
            if ignored or entry.name == ".git":
                continue
            if is_folder:
                pending.append((f"{path}/", rules))
            # not sockets, pipes and devices: reading one could wait for ever
            elif entry.is_symlink() or entry.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):  # it has just been removed
                    yield CodeFile(path, entry.stat(follow_symlinks=False).st_size, insisted=ignored is False)


def _entries(root: Path, prefix: str) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(root / prefix) as entries:
            return list(entries)
    except FileNotFoundError:  # it has just been removed
        return []
    except OSError as error:
        raise SpecError(f"code: {root / prefix} cannot be read: {error.strerror}",
                        _leave_out(root, [prefix])) from error


def _own_rules(root: Path, prefix: str, names: set[str]) -> Rules:
    present = [root / prefix / name for name in _IGNORE_FILES if name in names]
    lines = [line for path in present for line in _lines(path)]
    if not lines:
        return ()
    import pathspec  # costs 30 ms, which a folder without ignore files need not pay

    try:
        return ((prefix, pathspec.GitIgnoreSpec.from_lines(lines)),)
    except ValueError as error:
        raise SpecError(f"{present[-1]}: {error}", "the rules are git's: git help gitignore") from error


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error


def _ignored(path: str, rules: Rules) -> bool | None:
    """True: left out; False: named with `!`; None: no rule speaks of it."""
    for prefix, spec in reversed(rules):
        verdict = spec.check_file(path[len(prefix):]).include
        if verdict is not None:
            return verdict
    return None


def _holds_credentials(root: Path, file: CodeFile) -> bool:
    parts = file.name.lower().split("/")
    name = parts[-1]
    if name in _CREDENTIALS or "/".join(parts[-2:]) in _CREDENTIALS or name.endswith(_KEY_STORES):
        return True
    if name.startswith(".env."):
        return not name.endswith(_MODELS)
    return name.endswith(_LOOKED_INTO) and _looks_secret(root / file.name)


def _looks_secret(path: Path) -> bool:
    """Whether the beginning of a file holds a token, a private key, or a value for a name that says secret."""
    if path.is_symlink():
        return False
    try:
        with path.open("rb") as file:
            text = file.read(_LOOK_BYTES).decode("utf-8", errors="replace")
    except OSError:
        return False  # hashing it will say so
    return token_shape(text) is not None or bool(assigned_secrets(text))
