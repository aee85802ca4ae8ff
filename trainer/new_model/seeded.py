"""New models of any family, for tests, benchmarks and dry runs: random weights from a seed in the family's own layout,
with a tokenizer. Every weight has a generator of its own, so that it does not depend on the others. [I/O]"""

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from trainer.chat.answer import stop_ids
from trainer.data.templates import TEMPLATES
from trainer.errors import ConfigError
from trainer.families.card import Card
from trainer.families.weights import INDEX
from trainer.models.load import empty_model
from trainer.models.tokenizer import load_tokenizer
from trainer.new_model.dummy_tokenizer import write_tokenizer
from trainer.new_model.sizes import find_size, template_of

SHARD = 2**30  # bytes; what the host holds is two of them
DEVIATION = 0.02  # the makers' initializer_range


def write_model(family: str, size: str, folder: Path, seed: int, tokenizer: Path | None = None) -> int:
    """Make `folder`, all of it or nothing: config.json, generation_config.json, bf16 weights in shards, a tokenizer
    (that of the file or folder `tokenizer`, or a small one) and its chat template. Returns the number of parameters.
    Raises ConfigError."""
    card, raw = find_size(family, size)
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"--out: got {folder}, which is there, allowed: a new folder, or an empty one")
    folder = folder.absolute()
    part = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        part.mkdir(parents=True)
        _write_json(part / "config.json", raw)
        write_tokenizer(card, raw["vocab_size"], part, tokenizer)
        template, held = TEMPLATES[template_of(card)], load_tokenizer(str(part))
        (part / "chat_template.jinja").write_text(template.jinja(), encoding="utf-8")
        stop = {key: raw[key] for key in ("bos_token_id", "pad_token_id")}
        _write_json(part / "generation_config.json", {**stop, "eos_token_id": stop_ids(held, template.stop)})
        count = write_weights(card, raw, part, seed)
        part.replace(folder)
    except OSError as error:
        raise ConfigError(f"--out: {folder} cannot be written: {error.strerror or error}") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return count


def write_weights(card: Card, raw: dict[str, Any], folder: Path, seed: int, shard: int = SHARD) -> int:
    """Write the weights of a config.json, one shard after the other; returns the number of parameters."""
    from safetensors.torch import save_file

    shapes = _shapes(card, raw)
    shards = list(_shards(shapes, shard))
    names = ["model.safetensors"]
    if len(shards) > 1:
        names = [f"model-{place:05}-of-{len(shards):05}.safetensors" for place in range(1, len(shards) + 1)]
    for file, held in zip(names, shards, strict=True):
        weights = {name: seeded(seed, name, shapes[name], zero_norms=card.zero_norms) for name in held}
        save_file(weights, folder / file, metadata={"format": "pt"})
    parameters = sum(shape.numel() for shape in shapes.values())
    if len(shards) > 1:
        places = {name: file for file, held in zip(names, shards, strict=True) for name in held}
        index = {"metadata": {"total_size": 2 * parameters}, "weight_map": places}
        _write_json(folder / INDEX, index)
    return parameters


def seeded(seed: int, name: str, shape: torch.Size, *, zero_norms: bool = False) -> torch.Tensor:
    """One weight, bf16: normal with DEVIATION, and norms as they begin: one (zero in Gemma's form), without bias."""
    if "norm" in name:
        zero = zero_norms or name.endswith(".bias")
        return torch.full(shape, 0.0 if zero else 1.0, dtype=torch.bfloat16)
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(digest[:7], "little"))
    return torch.empty(shape, dtype=torch.bfloat16).normal_(std=DEVIATION, generator=generator)


def _shapes(card: Card, raw: dict[str, Any]) -> dict[str, torch.Size]:
    """Name -> shape of every weight in the family's own layout; a tied head is not one."""
    model = empty_model(card, card.config(raw))
    weights: dict[str, torch.Tensor] = dict(model.named_parameters())
    more = {}
    if card.layout:
        weights, more = card.layout.weights(weights, model.config), card.layout.unused(model.config)
    return {**{name: weight.shape for name, weight in weights.items()}, **more}


def _shards(shapes: dict[str, torch.Size], limit: int) -> Iterator[list[str]]:
    """Names in order, as many as fit into `limit` bytes of bf16."""
    held: list[str] = []
    size = 0
    for name, shape in shapes.items():
        bytes_ = 2 * shape.numel()
        if held and size + bytes_ > limit:
            yield held
            held, size = [], 0
        held.append(name)
        size += bytes_
    yield held


def _write_json(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")
