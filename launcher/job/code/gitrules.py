"""Ignore rules as git reads them: files of rules in any folder, those above the code folder in its work tree too.

A rule is tried on a path relative to the work tree's root; the deepest and the last one that speaks of it counts.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from launcher.errors import SpecError

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

# Of each file or two: the folder that its rules are relative to, with a slash at the end, and the rules.
Rules = tuple[tuple[str, "GitIgnoreSpec"], ...]


def rules_above(root: Path) -> tuple[str, Rules]:
    """What `root` is called from its git work tree's root, with a slash at the end, and the rules of the folders above
    it; nothing outside a work tree. A folder that they ignore was named all the same, so they do not count in it."""
    top = next((folder for folder in (root, *root.parents) if (folder / ".git").exists()), root)
    lead = "".join(f"{part}/" for part in root.relative_to(top).parts)
    rules = read_rules("", [_exclude_file(top)])
    for folder in [folder for folder in reversed(root.parents) if folder.is_relative_to(top)]:
        prefix = "".join(f"{part}/" for part in folder.relative_to(top).parts)
        rules += read_rules(prefix, [folder / ".gitignore"])
    return (lead, ()) if lead and ignored(lead, rules) else (lead, rules)


def read_rules(prefix: str, files: Sequence[Path]) -> Rules:
    """The rules of these files, the last of which has the last word; those that are not there have none. Raises
    SpecError for one that cannot be read or understood."""
    present = [path for path in files if path.is_file()]
    lines = [line for path in present for line in _lines(path)]
    if not lines:
        return ()
    import pathspec  # costs 30 ms, which a folder without ignore files need not pay

    try:
        return ((prefix, pathspec.GitIgnoreSpec.from_lines(lines)),)
    except ValueError as error:
        raise SpecError(f"{present[-1]}: {error}", "the rules are git's: git help gitignore") from error


def ignored(path: str, rules: Rules) -> bool | None:
    """True: left out; False: named with `!`; None: no rule speaks of it. A folder's path ends with a slash."""
    for prefix, spec in reversed(rules):
        verdict = spec.check_file(path[len(prefix):]).include
        if verdict is not None:
            return verdict
    return None


def _exclude_file(top: Path) -> Path:
    """The work tree's own rules. In a linked work tree and in a submodule `.git` is a file that names the folder."""
    git = top / ".git"
    if git.is_file():
        git = top / "".join(_lines(git)).removeprefix("gitdir:").strip()
        if (common := git / "commondir").is_file():
            git /= "".join(_lines(common))
    return git / "info/exclude"


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError as error:
        raise SpecError(f"{path}: cannot be read: {error.strerror}") from error
