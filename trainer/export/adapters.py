"""Adapters between Llama's form (q, k, v apart) and InternLM2's (wqkv), both exact. [I/O]

Fused to split: rows of B go to the matrix that they belong to, and A is shared. Split to fused: the matrices' A stand
one below the other, rank 3 r, and B has blocks of zeros, so every row is computed as before; where the three have the
same A, as after the first, rank r is enough. PEFT's names: base_model.model.MODULE.lora_A.weight.
"""

import json
import math
import re
from pathlib import Path
from typing import Any, Literal

import torch

from trainer.checkpoints.results import ADAPTER
from trainer.errors import ConfigError
from trainer.export.adapter import LENGTHS, LOW_A, LOW_B, TENSORS, Adapter
from trainer.export.part import new_folder
from trainer.families.internlm2_layout import NAMES, fuse_wqkv, split_wqkv
from trainer.models.lora import PREFIX

Form = Literal["llama", "internlm2"]
Tensors = dict[str, torch.Tensor]
FUSED, SPLIT = "attention.wqkv", tuple(f"self_attn.{letter}_proj" for letter in "qkv")
BACK = {llama: internlm2 for internlm2, llama in NAMES.items()}


def convert_adapter(folder: Path, heads: tuple[int, int], form: Form, target: Path) -> None:
    """Write the adapter of a folder in this form into the folder `target`. `heads`: attention heads and key/value heads
    of its base. Raises ConfigError."""
    from safetensors.torch import save_file

    adapter = Adapter(folder)
    modules = _modules(adapter)
    check_form(adapter, modules, form)
    tensors, ranks = (_split if form == "llama" else _fused)(modules, heads)
    config = _config(adapter, modules, form, ranks)
    with new_folder(target, 2 * sum(tensor.nbytes for tensor in tensors.values())) as part:
        contiguous = {PREFIX + name: tensor.contiguous() for name, tensor in tensors.items()}
        save_file(contiguous, part / TENSORS, metadata={"format": "pt"})
        (part / ADAPTER).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def check_form(adapter: Adapter, modules: dict[str, Tensors], form: Form) -> None:
    """Raise ConfigError for an adapter that has this form already, or neither."""
    names = NAMES if form == "llama" else BACK
    known = [*names, *((FUSED,) if form == "llama" else SPLIT)]
    unknown = [name for name in modules if not any(re.search(rf"(^|\.){re.escape(old)}$", name) for old in known)]
    if unknown:
        other = "internlm2" if form == "llama" else "llama"
        raise ConfigError(f"{adapter.folder}: got an adapter on {unknown[0]}, allowed: adapters in the form of {other}",
                          "an adapter that has the form already needs no conversion")  # fmt: skip


def _modules(adapter: Adapter) -> dict[str, Tensors]:
    """Module -> its tensors by the end of their names, as stored.
    Raises ConfigError for tensors that belong to no LoRA."""
    found: dict[str, Tensors] = {}
    for name, weight in adapter.tensors.items():
        ending = next((one for one in (LOW_A, LOW_B, LENGTHS) if name.endswith(one)), None)
        if ending is None:
            raise ConfigError(f"{adapter.folder}: got {name}, allowed: LoRA tensors (no modules_to_save)")
        found.setdefault(name.removesuffix(ending), {})[ending] = weight.whole()
    return found


def _split(modules: dict[str, Tensors], heads: tuple[int, int]) -> tuple[Tensors, dict[str, int]]:
    made: Tensors = {}
    for module, parts in modules.items():
        if not module.endswith(FUSED):
            made |= {_renamed(module, NAMES) + ending: tensor for ending, tensor in parts.items()}
            continue
        for place, name in enumerate(SPLIT):
            new = module.removesuffix(FUSED) + name
            made[new + LOW_A] = parts[LOW_A].clone()
            for ending in parts.keys() - {LOW_A}:
                made[new + ending] = split_wqkv(parts[ending], *heads)[place]
    return made, {}


def _fused(modules: dict[str, Tensors], heads: tuple[int, int]) -> tuple[Tensors, dict[str, int]]:
    made: Tensors = {}
    ranks = {}
    for module, parts in modules.items():
        if not module.endswith(SPLIT):
            made |= {_renamed(module, BACK) + ending: tensor for ending, tensor in parts.items()}
    for start in sorted({re.sub(r"self_attn\.[qkv]_proj$", "", name) for name in modules if name.endswith(SPLIT)}):
        three = [modules.get(start + name) for name in SPLIT]
        found = _one(start, three, heads)
        made |= {start + FUSED + ending: tensor for ending, tensor in found.items()}
        ranks[start + FUSED] = found[LOW_A].shape[0]
    return made, ranks


def _one(start: str, three: list[Tensors | None], heads: tuple[int, int]) -> Tensors:
    """The adapter on one wqkv from those on q, k and v, of which some may be missing."""
    there = [parts for parts in three if parts is not None]
    low_a = [parts[LOW_A] for parts in there]
    shared = len(there) == 3 and all(torch.equal(one, low_a[0]) for one in low_a)
    if not shared and len({len(one) for one in low_a}) != 1:
        raise ConfigError(f"{start}self_attn: got adapters of several ranks, allowed: one rank on q, k and v")
    rank = len(low_a[0])
    lows = []
    for number, rows in enumerate(_rows(there, three, heads)):
        parts = three[number]
        block = torch.zeros(rows, rank if shared else rank * len(there), dtype=low_a[0].dtype)
        if parts is not None:
            at = 0 if shared else rank * sum(other is not None for other in three[:number])
            block[:, at : at + rank] = parts[LOW_B]
        lows.append(block)
    made = {LOW_A: low_a[0] if shared else torch.cat(low_a), LOW_B: fuse_wqkv(lows[0], lows[1], lows[2], *heads)}
    if any(LENGTHS in parts for parts in there):
        if len(there) < 3:
            raise ConfigError(f"{start}self_attn: got DoRA on a part of q, k and v, allowed: on all three")
        lengths = [parts[LENGTHS] for parts in there]
        made[LENGTHS] = fuse_wqkv(lengths[0], lengths[1], lengths[2], *heads)
    return made


def _rows(there: list[Tensors], three: list[Tensors | None], heads: tuple[int, int]) -> list[int]:
    """Rows of q, k and v, of which one at least is there."""
    query = three[0]
    head = len(query[LOW_B]) // heads[0] if query is not None else len(there[0][LOW_B]) // heads[1]
    return [heads[0] * head, heads[1] * head, heads[1] * head]


def _config(adapter: Adapter, modules: dict[str, Tensors], form: Form, ranks: dict[str, int]) -> dict[str, Any]:
    """adapter_config.json of the converted one. `ranks`: those of the fused modules, which keep their scale."""
    config = {**adapter.config, "target_modules": _targets(modules, form)}
    if config.get("rank_pattern") or config.get("alpha_pattern"):
        raise ConfigError(f"{adapter.folder}: got rank_pattern or alpha_pattern in {ADAPTER}, allowed: one rank")
    if len(set(ranks.values())) > 1:
        raise ConfigError(f"{adapter.folder}: got q, k and v adapted differently in the layers, allowed: alike")
    rank = next(iter(ranks.values()), config["r"])
    if rank != config["r"]:
        ratio = rank / config["r"]
        alpha = config["lora_alpha"] * (math.sqrt(ratio) if config.get("use_rslora") else ratio)
        config |= {"rank_pattern": {"wqkv": rank}, "alpha_pattern": {"wqkv": alpha}}
    return config


def _targets(modules: dict[str, Tensors], form: Form) -> list[str]:
    """The last names of the modules in the new form."""
    others = [module for module in modules if not module.endswith((FUSED, *SPLIT))]
    found = {_renamed(module, NAMES if form == "llama" else BACK).rpartition(".")[2] for module in others}
    if len(others) < len(modules):
        found |= {"wqkv"} if form == "internlm2" else {"q_proj", "k_proj", "v_proj"}
    return sorted(found)


def _renamed(module: str, names: dict[str, str]) -> str:
    for old, new in names.items():
        if re.search(rf"(^|\.){re.escape(old)}$", module):
            return module[: len(module) - len(old)] + new
    return module
