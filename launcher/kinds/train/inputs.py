"""Which files and folders a training reads. Pure: whether they are there is for others to say."""

import re
from collections.abc import Callable, Iterator
from typing import Any

from pydantic import BaseModel

from launcher.job.kind import Input, Loc

EACH = "*"
_DATA = re.compile(r"\.(jsonl?|csv|parquet|gz|zst)$")


def _is_model_path(path: str) -> bool:
    """Anything else may be a name on the hub (trainer/models/hub.py)."""
    return path.startswith((".", "/", "~")) or path.count("/") > 1


def _is_data_path(path: str) -> bool:
    """Anything else is an address, or may be a data set on the hub (trainer/data/sources.py)."""
    return "://" not in path and (path.startswith((".", "/", "~")) or bool(_DATA.search(path)))


ROWS = "a file or folder that exists, or a glob of files"
# where a path stands, when it is one, what may stand there, whether it must be a folder
PLACES: tuple[tuple[Loc, Callable[[str], bool], str, bool], ...] = (
    (("model", "path"), _is_model_path, "a folder that exists, or a name on the Hugging Face hub", True),
    (("data", "sources", EACH, "path"), _is_data_path, ROWS, False),
    (("data", "validation", EACH, "path"), _is_data_path, ROWS, False),
    (("data", "image_dir"), bool, "a folder that exists", True),
    (("optimizer", "deepspeed", "config"), bool, "a file that exists", False),
)


def inputs(section: Any) -> Iterator[Input]:
    """Of a `train:` section, checked or as it stands in the file."""
    for pattern, is_path, allowed, is_folder in PLACES:
        for loc, path in _texts(section, pattern):
            if is_path(path):
                yield Input(loc, path, allowed, is_folder)


def _texts(value: Any, pattern: Loc, loc: Loc = ()) -> Iterator[tuple[Loc, str]]:
    """Every text at a place of that pattern, and where it stands."""
    if not pattern:
        if isinstance(value, str):
            yield loc, value
        return
    step, *rest = pattern
    inner: list[tuple[str | int, Any]] = []
    if step == EACH and isinstance(value, list):
        inner = list(enumerate(value))
    elif isinstance(value, dict | BaseModel):
        inner = [(step, dict(value).get(step))]
    for key, item in inner:
        yield from _texts(item, tuple(rest), (*loc, key))
