"""Weights -> a checkpoint in safetensors, written as they are computed: the header says where each lies before any is
known, so that none has to be held. [I/O]
"""

import json
import os
from collections.abc import Mapping
from math import prod
from pathlib import Path

from trainer.export.stored import DTYPES
from trainer.export.weights import Weight
from trainer.families.weights import INDEX

SHARD_BYTES = 4 * 10**9  # what hubs and servers are used to; memory does not depend on it
_NAMES = {dtype: name for name, dtype in DTYPES.items()}


def write_checkpoint(weights: Mapping[str, Weight], folder: Path, shard_bytes: int = SHARD_BYTES) -> None:
    """Write `model.safetensors`, or several files with their index, into a folder. Raises OSError."""
    from huggingface_hub import split_state_dict_into_shards_factory

    plan = split_state_dict_into_shards_factory(
        dict(weights),
        get_storage_size=size_of,
        filename_pattern="model{suffix}.safetensors",
        max_shard_size=shard_bytes,
    )
    for file, names in plan.filename_to_tensors.items():
        write_safetensors({name: weights[name] for name in names}, folder / file)
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        (folder / INDEX).write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def size_of(weight: Weight) -> int:
    """Bytes of a weight on disk."""
    return prod(weight.shape) * weight.dtype.itemsize


def write_safetensors(weights: Mapping[str, Weight], path: Path) -> None:
    """One file (format: see trainer.export.stored). Raises OSError."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    place = 0
    for name, weight in weights.items():
        end = place + size_of(weight)
        header[name] = {"dtype": _NAMES[weight.dtype], "shape": weight.shape, "data_offsets": [place, end]}
        place = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the data is aligned
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for weight in weights.values():
            for block in weight.blocks():
                file.write(block.contiguous().view(-1).view(DTYPES["U8"]).numpy().data)
        file.flush()
        os.fsync(file.fileno())  # a full disk is told now, not after the rename
