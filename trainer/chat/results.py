"""The file that answers are written into: whole or not at all, and an interrupted one is gone on with. [I/O]"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any, TextIO

from trainer.errors import ConfigError


class Results:
    """JSON lines of one file. Until they are all there they lie in a hidden file beside it, behind a line with the
    `mark` of what they are answers to; the answers of another mark are thrown away."""

    def __init__(self, path: Path, mark: str) -> None:
        self.path, self._part = path, path.with_name(f".{path.name}.part")
        self.rows: list[dict[str, Any]] = []
        try:
            lines = self._part.read_bytes().split(b"\n")[:-1] if self._part.exists() else []
            if lines and lines[0].decode() == mark:
                self.rows = [json.loads(line) for line in lines[1:]]
            self._file = self._part.open("w", encoding="utf-8")
        except (OSError, ValueError) as error:
            where = "name a file in a folder that exists"
            raise ConfigError(f"--out: {path}: cannot be written: {error}", where) from error
        self._file.write(f"{mark}\n")
        kept, self.rows = self.rows, []
        self.add(kept)

    def add(self, rows: list[dict[str, Any]]) -> None:
        """More answers, in order."""
        self.rows += rows
        self._file.write(json_lines(rows))
        self._file.flush()

    def close(self) -> None:
        """All are there: the file gets them."""
        self._file.close()
        whole = self.path.with_name(f".{self.path.name}.{os.getpid()}.part")
        whole.write_text(json_lines(self.rows), encoding="utf-8")
        whole.replace(self.path)
        self._part.unlink()


class Printed:
    """The same on a stream."""

    def __init__(self, out: TextIO) -> None:
        self.rows: list[dict[str, Any]] = []
        self._out = out

    def add(self, rows: list[dict[str, Any]]) -> None:
        """More answers, in order."""
        self.rows += rows
        self._out.write(json_lines(rows))
        self._out.flush()

    def close(self) -> None:
        """Nothing waits."""


def json_lines(rows: Iterable[dict[str, Any]]) -> str:
    """One line a row."""
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)


def mark_of(*parts: Any) -> str:
    """A line that is the same for the same parts, which JSON can hold."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def stamp(folder: Path | str | None) -> list[tuple[str, int, int]]:
    """Names, sizes and times of the files in a folder: another training gives others."""
    path = Path(folder) if folder else None
    if path is None or not path.is_dir():
        return []
    found = [(file.name, file.stat()) for file in path.iterdir() if file.is_file()]
    return sorted((name, facts.st_size, facts.st_mtime_ns) for name, facts in found)
