"""What the processes of a node leave for its entrypoint: a file each, empty while the process runs, then its exit code
and error text.

torchrun ends with 1 whatever its workers return, and keeps their words to itself.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

VARIABLE = "LAUNCH_EXIT_FILES"


@dataclass(frozen=True)
class Report:
    """One process: `code` is None when it was killed before it could say."""

    rank: int
    code: int | None
    text: str


def open_report(environ: Mapping[str, str]) -> None:
    """Say that this process has begun, and that it takes signals."""
    _write(environ, "")


def leave_report(environ: Mapping[str, str], code: int, text: str) -> None:
    """Say how this process ends; a later call counts."""
    _write(environ, f"{code}\n{text}")


def read_reports(folder: Path) -> list[Report]:
    """The reports in the order in which they were left."""
    found = []
    for path in sorted(folder.glob("rank-*"), key=lambda path: path.stat().st_mtime_ns):
        code, _, text = path.read_text(encoding="utf-8").partition("\n")
        found.append(Report(int(path.name.removeprefix("rank-")), int(code) if code else None, text))
    return found


def _write(environ: Mapping[str, str], text: str) -> None:
    folder = Path(environ.get(VARIABLE, ""))
    if environ.get(VARIABLE) and folder.is_dir():
        part = folder / f".rank-{environ.get('RANK', '0')}"
        part.write_text(text, encoding="utf-8")
        part.replace(folder / part.name[1:])
