"""Where rows come from: files, folders, globs, and data sets on the hub, all read by `datasets`. [I/O]"""

import glob
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.config import Data, FormatName, Source
from trainer.errors import ConfigError

BUILDERS = {".json": "json", ".jsonl": "json", ".gz": "json", ".zst": "json", ".csv": "csv", ".parquet": "parquet"}


def read_rows(data: Data, seed: int) -> Iterator[tuple[FormatName, str, dict[str, Any]]]:
    """(format, where, row) of every source in turn; `where` names the row in messages. Raises ConfigError."""
    for number, source in enumerate(data.sources):
        rows = _load(source)
        for index in _chosen(len(rows), source.weight, _rng(seed, number)):
            yield source.format or data.format, f"{source.path} row {index + 1}", rows[index]


def _load(source: Source) -> Any:
    import datasets

    datasets.disable_progress_bars()
    files = _files(source.path)
    try:
        if files:
            suffix = Path(files[0]).suffix
            if suffix not in BUILDERS:
                raise ConfigError(f"data.sources: got {files[0]}, allowed: {', '.join(BUILDERS)}")
            return datasets.load_dataset(BUILDERS[suffix], data_files=files, split=source.split)
        if source.path.startswith((".", "/", "~")) or Path(source.path).suffix in BUILDERS:
            raise ConfigError(
                f"data.sources: got {source.path}, allowed: a file or folder that exists "
                f"(working directory: {Path.cwd()})"
            )
        return datasets.load_dataset(source.path, split=source.split)
    except ConfigError:
        raise
    except Exception as error:  # datasets raises many kinds; each is about what the user named
        raise ConfigError(f"data.sources: {source.path} cannot be read: {str(error).splitlines()[0]}") from error


def _files(path: str) -> list[str]:
    """The data files that `path` names on this machine, sorted."""
    path = str(Path(path).expanduser())
    if Path(path).is_file():
        return [path]
    pattern = f"{path}/**/*" if Path(path).is_dir() else path
    return sorted(
        name for name in glob.glob(pattern, recursive=True) if Path(name).is_file() and Path(name).suffix in BUILDERS
    )


def _rng(seed: int, number: int) -> random.Random:
    """One stream of choices per source: adding a source does not change what others give."""
    return random.Random(f"{seed}/{number}")  # noqa: S311  (a sample, not a secret)


def _chosen(count: int, weight: float, rng: random.Random) -> list[int]:
    """Every row int(weight) times, and a random share of them once more for the rest."""
    whole, part = divmod(weight, 1.0)
    return list(range(count)) * int(whole) + sorted(rng.sample(range(count), round(part * count)))
