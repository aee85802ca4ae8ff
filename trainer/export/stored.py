"""The weights of a checkpoint on disk, read some rows at a time. [I/O]

Safetensors are read with plain reads, not mapped: mapped pages count as a process's memory. Format: 8 bytes with the
length of a JSON header (little-endian), the header (name -> dtype, shape, data_offsets), the data
(https://github.com/huggingface/safetensors#format).
"""

import json
from collections.abc import Iterable
from math import prod
from pathlib import Path
from typing import Any

import torch

from trainer.errors import ConfigError
from trainer.export.weights import Weight
from trainer.families.weights import require, unpickled, weight_files

HINT = "the file was not copied or downloaded to its end: get it again"
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "I64": torch.int64,
    "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8, "BOOL": torch.bool,
}  # fmt: skip


class StoredWeight(Weight):
    """A tensor of a safetensors file, `begin` bytes from the file's start."""

    def __init__(self, path: Path, name: str, dtype: torch.dtype, shape: Iterable[int], begin: int) -> None:
        self.path, self.name, self.dtype, self.begin = path, name, dtype, begin
        self.shape = tuple(shape) or (1,)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        width = prod(self.shape[1:]) * self.dtype.itemsize
        buffer = torch.empty((stop - start) * width, dtype=torch.uint8)
        try:
            with self.path.open("rb", buffering=0) as file:
                file.seek(self.begin + start * width)
                got = file.readinto(buffer.numpy().data)
        except OSError as error:
            raise ConfigError(f"{self.path}: weight {self.name} cannot be read: {error.strerror}") from error
        if got != buffer.numel():
            raise ConfigError(f"{self.path}: weight {self.name}: the file ends within it", HINT)
        return buffer.view(self.dtype).view(stop - start, *self.shape[1:])


class PickledWeight(Weight):
    """A tensor of a .bin file, which is mapped; what was touched of it is let go with the next weight."""

    def __init__(self, file: "PickledFile", name: str, tensor: torch.Tensor) -> None:
        self.file, self.name, self.path = file, name, file.path
        self.dtype, self.shape = tensor.dtype, tuple(tensor.shape) or (1,)

    def rows(self, start: int, stop: int) -> torch.Tensor:
        return self.file.tensor(self.name).view(self.shape)[start:stop].clone()


class PickledFile:
    """A .bin file, read by torch without pickle's code."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._name, self._tensor = "", torch.empty(0)

    def weights(self) -> dict[str, Weight]:
        """All its tensors. Raises ConfigError."""
        found = unpickled(self.path, None)
        return {name: PickledWeight(self, name, tensor) for name, tensor in found.items() if torch.is_tensor(tensor)}

    def tensor(self, name: str) -> torch.Tensor:
        """One of them; the one before is unmapped first."""
        if name != self._name:
            self._name, self._tensor = "", torch.empty(0)
            self._name, self._tensor = name, unpickled(self.path, [name])[name]
        return self._tensor


def checkpoint_weights(folder: Path) -> dict[str, Weight]:
    """Every weight of a checkpoint by its name, in the order of its files. Raises ConfigError."""
    found: dict[str, Weight] = {}
    for file, names in weight_files(folder).items():
        held = safetensors_weights(file) if file.suffix == ".safetensors" else PickledFile(file).weights()
        require(file, held, names)
        wanted = set(held if names is None else names)
        found |= {name: weight for name, weight in held.items() if name in wanted}
    return found


def safetensors_weights(path: Path) -> dict[str, Weight]:
    """Every tensor of one file. Raises ConfigError for a file that is none, or is not whole."""
    try:
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            size = path.stat().st_size
            if length > size - 8:
                raise ValueError(f"a header of {length} bytes in a file of {size}")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        found = {name: _weight(path, name, entry, 8 + length, size) for name, entry in header.items()}
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ConfigError(f"{path}: not a safetensors file: {error}", HINT) from error
    return dict(sorted(found.items(), key=lambda item: item[1].begin))


def _weight(path: Path, name: str, entry: dict[str, Any], data: int, size: int) -> StoredWeight:
    begin, end = entry["data_offsets"]
    if entry["dtype"] not in DTYPES:
        raise ConfigError(f"{path}: weight {name}: got dtype {entry['dtype']}, allowed: {', '.join(DTYPES)}",
                          "this checkpoint is quantised; merge into the one it was made of")  # fmt: skip
    dtype = DTYPES[entry["dtype"]]
    if end - begin != prod(entry["shape"]) * dtype.itemsize:
        raise ConfigError(f"{path}: weight {name}: got {end - begin} bytes for shape {entry['shape']}", HINT)
    if data + end > size:
        raise ConfigError(f"{path}: weight {name}: the file ends within it ({size} bytes, {data + end} expected)", HINT)
    return StoredWeight(path, name, dtype, entry["shape"], data + begin)
