"""Which files of a folder hold its weights, and one weight after the other out of them. Files are mapped, one at a
time: what a process holds of them is at most the largest file. [I/O]"""

import json
import pickle
import re
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainer.errors import ConfigError

Read = Callable[[], torch.Tensor]
Tensors = Iterator[tuple[str, list[int], Read]]

INDEX = "model.safetensors.index.json"
AGAIN = "download it again, or copy it whole"


def read_tensors(folder: Path) -> Tensors:
    """Name and shape of every weight of a checkpoint, in the same order on every rank, and how to read it: from
    safetensors or, without pickle's code, from .bin files. What `read` gives is to be copied and let go before the next
    file. Raises ConfigError."""
    for file, names in weight_files(folder).items():
        yield from (_from_safetensors if file.suffix == ".safetensors" else _from_pickle)(file, names)


def weight_files(folder: Path) -> dict[Path, list[str] | None]:
    """The files of a checkpoint in the order of their names, and what its index says each holds (None: no index). Other
    files beside them are not part of it. Raises ConfigError when one is missing."""
    for stem, ending in (("model", "safetensors"), ("pytorch_model", "bin")):
        index = folder / f"{stem}.{ending}.index.json"
        if index.is_file():
            return _indexed(index)
        single = folder / f"{stem}.{ending}"
        if single.is_file():
            return {single: None}
        parts = sorted(folder.glob(f"{stem}-*-of-*.{ending}"))
        if parts:
            return dict.fromkeys(_all_parts(parts))
    raise ConfigError(
        f"{folder}: no weights, allowed: model.safetensors or pytorch_model.bin, or their shards",
        "model.path is the folder of a whole checkpoint, not that of an adapter",
    )


def file_of(folder: Path, name: str) -> Path:
    """The file that holds a weight."""
    files = weight_files(folder)
    for file, names in files.items():
        if name in (names if names is not None else [found for found, _, _ in _read_one(file)]):
            return file
    return next(iter(files))


def _indexed(index: Path) -> dict[Path, list[str] | None]:
    try:
        places: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(places.values()))
        if any(Path(file).name != file for file in files):
            raise ValueError("it names files of another folder")
        found: dict[Path, list[str] | None] = {index.parent / file: [] for file in files}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ConfigError(f"{index}: cannot be read as an index of weights: {error}", AGAIN) from error
    for name, file in places.items():
        names = found[index.parent / file]
        assert names is not None
        names.append(name)
    for path, names in found.items():
        if not path.is_file():
            raise ConfigError(
                f"{path}: is missing, but {index.name} says that it holds {(names or ['?'])[0]} and "
                f"{len(names or []) - 1} weights more",
                "download the checkpoint again; a download that was cut short leaves shards out",
            )
    return found


def _all_parts(parts: list[Path]) -> list[Path]:
    """Shards that have no index, by the numbers in their names."""
    stem, number, ending = re.split(r"\d+-of-(\d+)", parts[0].name)
    wanted = [parts[0].with_name(f"{stem}{place:05}-of-{number}{ending}") for place in range(1, int(number) + 1)]
    for path in wanted:
        if not path.is_file():
            raise ConfigError(f"{path}: is missing, but {parts[0].name} is there", AGAIN)
    return wanted


def _read_one(file: Path) -> Tensors:
    return (_from_safetensors if file.suffix == ".safetensors" else _from_pickle)(file, None)


def _from_safetensors(file: Path, names: list[str] | None) -> Tensors:
    from safetensors import SafetensorError, safe_open

    try:
        opened = safe_open(file, framework="pt")
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{file}: {_what_is_wrong(file, names)}: {error}", AGAIN) from error
    with opened as weights:
        held = weights.keys()
        require(file, held, names)
        for name in held if names is None else names:
            yield name, weights.get_slice(name).get_shape(), partial(weights.get_tensor, name)


def _from_pickle(file: Path, names: list[str] | None) -> Tensors:
    weights = unpickled(file, names)
    require(file, weights, names)
    for name in list(weights) if names is None else names:
        if not isinstance(weights[name], torch.Tensor):
            kind = type(weights[name]).__name__
            raise ConfigError(f"{file}: got a {kind} under {name}, allowed: a tensor under each name")
        yield name, list(weights[name].shape), partial(weights.__getitem__, name)
    weights.clear()


def unpickled(file: Path, names: list[str] | None) -> dict[str, Any]:
    """All that a .bin file holds, mapped where its form allows that. `names`: what the index says that it holds. Raises
    ConfigError."""
    load = partial(torch.load, file, map_location="cpu", weights_only=True)
    try:
        try:
            weights = load(mmap=True)
        except RuntimeError as error:  # torch's form before 1.6, which cannot be mapped
            if "mmap can only be used" not in str(error):
                raise
            weights = load()
    except pickle.UnpicklingError as error:
        why = str(error).replace("Weights only load failed.", "").strip().splitlines()
        raise ConfigError(
            f"{file}: holds more than tensors, or is no checkpoint; none of its code was run ({_short(why)})",
            "take the checkpoint's safetensors, or convert it on a machine where you trust the file",
        ) from error
    except (RuntimeError, OSError, EOFError, ValueError, KeyError) as error:
        first = f", whose first weight is {names[0]}," if names else ""
        problem = f"{file}{first} is cut short or damaged: {_short(str(error).splitlines())}"
        raise ConfigError(problem, AGAIN) from error
    if not isinstance(weights, dict):
        raise ConfigError(f"{file}: got a {type(weights).__name__}, allowed: names and tensors")
    return weights


def _short(lines: list[str]) -> str:
    return lines[0].strip()[:200] if lines else "no reason given"


def require(file: Path, held: Any, names: list[str] | None) -> None:
    """Raise ConfigError unless a file holds what the index says."""
    missing = sorted(set(names or []) - set(held))
    if missing:
        raise ConfigError(f"{file}: weight {missing[0]} is missing, though the index says that it is there", AGAIN)


def _what_is_wrong(file: Path, names: list[str] | None) -> str:
    """Of a safetensors file that cannot be opened: a header of 8 bytes' length, then JSON with the place of each
    tensor's bytes after it (the format's own page), and which tensor is not there whole."""
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        head = opened.read(length) if length < size else b""
    try:
        entries = {key: value for key, value in json.loads(head).items() if key != "__metadata__"}
        ends = sorted((entry["data_offsets"][1] + 8 + length, name) for name, entry in entries.items())
    except (ValueError, KeyError, TypeError, AttributeError):
        first = f" (it holds {names[0]})" if names else ""
        return f"its header is damaged{first}"
    cut = next((name for end, name in ends if end > size), None)
    return f"is cut short: {cut} is not there whole" if cut else "is damaged"
