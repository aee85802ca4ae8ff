"""Where rows come from: files, folders and globs of them, here or behind an fsspec address, and data sets on the
hub. [I/O]"""

import io
import itertools
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from trainer.config.job import Source
from trainer.data.readers import Place, Read, read_csv, read_json, read_jsonl, read_parquet, without_nulls
from trainer.errors import ConfigError
from trainer.node.transient import read_error

__all__ = ["Place", "Read", "read_source", "source_files"]

KINDS: dict[str, Callable[[io.BufferedReader, str], Iterator[Read]]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".csv": read_csv,
    ".parquet": read_parquet,
}
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
ALLOWED = f"{', '.join(KINDS)} ({' and '.join(COMPRESSIONS)} may follow)"
MAGIC = re.compile(r"[*?\[]")
WHOLE = "train"
BUFFER_BYTES = 1 << 20


def read_source(source: Source) -> Iterator[Read]:
    """Every row in order, file by file. Raises ConfigError for what cannot be read at all, or is cut off."""
    files = source_files(source)
    if files and not _has_card(os.path.expanduser(source.path)):
        return itertools.chain.from_iterable(map(_read_file, files))
    return _read_hub(source)


def source_files(source: Source) -> list[str]:
    """The files that will be read, sorted; none for a data set on the hub. A local copy of such a data set (a folder
    whose README.md is a data set card) gives those of the split only. Raises ConfigError."""
    path = os.path.expanduser(source.path)
    found, there = (_split_files(source), True) if _has_card(path) else _find(path)
    if there and not found:
        raise ConfigError(f"data.sources: got {path}, allowed: a file, or a folder with files, that end in {ALLOWED}")
    if not there and ("://" in path or path.startswith((".", "/")) or _kind(path)):
        raise ConfigError(
            f"data.sources: got {path}, allowed: a file or folder that exists (working directory: {Path.cwd()})"
        )
    if found and source.split != WHOLE and not _has_card(path):
        raise ConfigError(f"data.sources: {path}: got split {source.split}, allowed: {WHOLE} (files have no splits)")
    return found


def _find(path: str) -> tuple[list[str], bool]:
    """The data files that a path names, and whether there is anything at all."""
    from fsspec.core import url_to_fs

    try:
        system, root = url_to_fs(path)
        if system.isfile(root):
            return [path] if _kind(path) else [], True
        folder = system.isdir(root)
        names = system.find(root) if folder else _glob(system, root)
    except (OSError, ValueError, ImportError) as error:
        raise read_error(f"data.sources: {path} cannot be read: {_first_line(error)}", error) from error
    named = len(root if folder else MAGIC.split(root)[0].rpartition("/")[0])
    chosen = [name for name in names if _kind(name) and "/." not in name[named:]]
    if "://" in path:
        chosen = [system.unstrip_protocol(name) for name in chosen]
    elif not path.startswith("/"):
        chosen = [os.path.relpath(name) for name in chosen]
    return sorted(chosen), folder or bool(names)


def _glob(system: Any, pattern: str) -> set[str]:
    """The files that a glob names, and those in the folders that it names."""
    names = system.glob(pattern) if MAGIC.search(pattern) else []
    return {file for name in names for file in (system.find(name) if system.isdir(name) else [name])}


def _kind(name: str) -> str:
    """The suffix that says how a file is read; empty for other files."""
    suffixes = Path(name).suffixes[-2:]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        inner = suffixes[0] if len(suffixes) > 1 else ".jsonl"
        return inner if inner in KINDS and inner != ".parquet" else ""
    return suffixes[-1] if suffixes and suffixes[-1] in KINDS else ""


def _read_file(name: str) -> Iterator[Read]:
    import fsspec
    import pyarrow

    try:
        with fsspec.open(name, "rb") as raw:
            stream: Any = raw
            if compression := COMPRESSIONS.get(Path(name).suffix):
                stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(raw, "r"), compression)
            yield from KINDS[_kind(name)](io.BufferedReader(stream, BUFFER_BYTES), name)
    except (OSError, ImportError, pyarrow.ArrowException) as error:
        raise read_error(f"data.sources: {name} cannot be read: {_first_line(error)}", error) from error


def _has_card(path: str) -> bool:
    card = Path(path) / "README.md"
    return "://" not in path and card.is_file() and card.read_bytes().startswith(b"---")


def _split_files(source: Source) -> list[str]:
    import datasets

    try:
        known = datasets.load_dataset_builder(os.path.expanduser(source.path)).config.data_files or {}
    except Exception as error:  # datasets raises many kinds; each is about what the user named
        raise read_error(f"data.sources: {source.path} cannot be read: {_first_line(error)}", error) from error
    names = {part.split("[")[0].strip() for part in source.split.split("+")}
    if unknown := names - {str(name) for name in known}:
        raise ConfigError(f"data.sources: {source.path}: got split {unknown.pop()}, allowed: {', '.join(known)}")
    return sorted(str(file) for name in names for file in known[name])


def _read_hub(source: Source) -> Iterator[Read]:
    """Through `datasets`: streamed, but for a slice of a split, which needs the number of its rows."""
    import datasets

    datasets.disable_progress_bars()
    try:
        rows = datasets.load_dataset(
            os.path.expanduser(source.path), split=source.split, streaming="[" not in source.split
        )
        for number, row in enumerate(rows, 1):
            yield Read(Place(source.path, number), without_nulls(row))
    except Exception as error:  # datasets raises many kinds; each is about what the user named
        raise read_error(f"data.sources: {source.path} cannot be read: {_first_line(error)}", error) from error


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
