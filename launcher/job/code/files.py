"""Which files of a folder are code: the walk, the ignore files, and what must not be shipped.

`.gitignore` and `.launchignore` have the same rules and may stand in any folder; the deepest and the last word count,
so a `!name` in `.launchignore` takes in what `.gitignore` leaves out. What git ignores because of a file above the
folder counts too (gitrules.py). `.git` and the trainer's own output folders never travel; links are not followed, and
one that leads out of the folder is refused.
"""

import os
import shlex
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from launcher.errors import SpecError
from launcher.job.code.gitrules import Rules, ignored, read_rules, rules_above
from launcher.job.secrets import assigned_secrets, token_shape

# Code is a few megabytes; what is larger is data or results that were not left out.
MAX_BYTES = 500 * 2**20
MAX_FILES = 100_000
ENOUGH_BYTES = 20 * 2**30
_IGNORE_FILES = (".gitignore", ".launchignore")
MAX_LINKS = 40  # that one path may follow; the kernel's own limit

# The trainer writes the first when a run begins; older runs are known by the other two.
_RUN_MARKER, _RUN_FILES = ".launch-run.json", {"config.yaml", "metrics.jsonl"}
_RUN_SECTIONS = ("settings:", "model:", "data:", "optimizer:", "runtime:")

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
    is_link: bool = False


def code_files(root: Path) -> list[CodeFile]:
    """The files below `root`, sorted. Raises SpecError when they are absurdly many or large, are links that lead out of
    it, or hold credentials."""
    if root == Path("/"):
        raise SpecError("code: must be a folder of code, not /, which is the whole machine")
    found: list[CodeFile] = []
    size = 0
    for file in _walk(root):
        found.append(file)
        size += file.size
        if len(found) > MAX_FILES or size > ENOUGH_BYTES:  # somebody's home folder: nobody waits for the rest
            break
    if len(found) > MAX_FILES or size > MAX_BYTES:
        raise _too_much(root, found, size)
    _refuse_links(root, sorted(file.name for file in found if file.is_link))
    credentials = [file.name for file in found if not file.insisted and file.size and _holds_credentials(root, file)]
    if credentials:
        insist = f"(a line such as !/{credentials[0]} there ships it all the same)"
        raise SpecError(f"code: {root} holds credentials: {', '.join(credentials)}",
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
    return SpecError(f"code: {root} has {more}{len(found)} files, {size / 2**20:.0f} MiB; at most {MAX_FILES} files, "
                     f"{MAX_BYTES >> 20} MiB can be shipped\n{listed(found)}",
                     f"mount data instead, and {_leave_out(root, [worst])}")


def _leave_out(root: Path, names: Sequence[str]) -> str:
    lines = shlex.join(f"/{name}" for name in names)
    return f"leave it out: printf '%s\\n' {lines} >>{shlex.quote(str(root / '.launchignore'))}"


def _walk(root: Path) -> Iterator[CodeFile]:
    lead, rules_of_parents = rules_above(root)
    pending: list[tuple[str, Rules]] = [("", rules_of_parents)]
    while pending:
        prefix, above = pending.pop()
        entries = _entries(root, prefix)
        names = {entry.name for entry in entries}
        if prefix and _is_run_output(root / prefix, names):
            continue
        own = [root / prefix / name for name in _IGNORE_FILES if name in names]
        rules = (*above, *read_rules(lead + prefix, own))
        for entry in entries:
            path, is_folder = prefix + entry.name, entry.is_dir(follow_symlinks=False)
            left_out = ignored(lead + path + "/" * is_folder, rules)
            if left_out or entry.name == ".git":
                continue
            if is_folder:
                pending.append((f"{path}/", rules))
            # not sockets, pipes and devices: reading one could wait for ever
            elif entry.is_symlink() or entry.is_file(follow_symlinks=False):
                with suppress(FileNotFoundError):  # it has just been removed
                    yield CodeFile(path, entry.stat(follow_symlinks=False).st_size, insisted=left_out is False,
                                   is_link=entry.is_symlink())


def _entries(root: Path, prefix: str) -> "list[os.DirEntry[str]]":
    try:
        with os.scandir(root / prefix) as entries:
            return list(entries)
    except FileNotFoundError:  # it has just been removed
        return []
    except OSError as error:
        raise SpecError(f"code: {root / prefix} cannot be read: {error.strerror}",
                        _leave_out(root, [prefix])) from error


def _is_run_output(folder: Path, names: set[str]) -> bool:
    """Whether the trainer has written the folder: checkpoints and weights, and never code."""
    if _RUN_MARKER in names:
        return True
    if not names >= _RUN_FILES:
        return False
    try:
        with (folder / "config.yaml").open(encoding="utf-8", errors="replace") as file:
            first = {line.rstrip() for line in file.read(_LOOK_BYTES).splitlines()}
    except OSError:
        return False
    return first.issuperset(_RUN_SECTIONS)


def _refuse_links(root: Path, links: Sequence[str]) -> None:
    """Raise SpecError with all links that lead out of the folder: a job has only what is inside."""
    outward = [(name, _target(root / name)) for name in links if _leads_out(root, name)]
    if outward:
        lines = "\n".join(f"  {name} -> {target}{_remark(root, target)}" for name, target in outward)
        raise SpecError(f"code: these links lead out of {root}, and a job has only what is inside:\n{lines}",
                        "copy the files into the folder, or mount them; where the job does not need a link, "
                        + _leave_out(root, [name for name, _ in outward]))


def _leads_out(root: Path, name: str) -> bool:
    """Whether the way that a link leads, through other links too, leaves the folder anywhere, or is absolute."""
    here: list[str] = []
    ahead, links = name.split("/")[::-1], 0
    while ahead and links <= MAX_LINKS:  # links in a circle lead nowhere
        part = ahead.pop()
        if part == "..":
            if not here:
                return True
            here.pop()
        elif part not in ("", "."):
            here.append(part)
            if target := _target(root.joinpath(*here)):
                if target.startswith("/"):
                    return True
                links += 1
                here.pop()
                ahead += target.split("/")[::-1]
    return False


def _target(path: Path) -> str:
    """Where a link points; nothing for what is no link (any more)."""
    try:
        return os.readlink(path)
    except OSError:
        return ""


def _remark(root: Path, target: str) -> str:
    """What to do about an absolute link that stays inside on this machine."""
    is_inside = Path(target).is_absolute() and Path(os.path.normpath(target)).is_relative_to(root)
    return " (inside, but absolute: make it relative)" if is_inside else ""


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
