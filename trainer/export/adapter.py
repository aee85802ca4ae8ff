"""A LoRA adapter on disk, and weights with it added. [I/O]

File: PEFT's adapter_config.json and adapter_model.safetensors. W' = W + s * B A with s = alpha / r, or alpha / sqrt(r)
with rsLoRA (arXiv:2106.09685, 2312.03732). With DoRA (arXiv:2402.09353) every row of W' is scaled to the length m that
was trained for it. All of it is computed in float32.
"""

import math
import re
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from trainer.checkpoints.results import ADAPTER, read_adapter
from trainer.errors import ConfigError
from trainer.export.stored import safetensors_weights
from trainer.export.weights import Weight
from trainer.models.lora import PREFIX

TENSORS = "adapter_model.safetensors"
LOW_A, LOW_B, LENGTHS = ".lora_A.weight", ".lora_B.weight", ".lora_magnitude_vector"
# What changes the arithmetic above, and the values that do not
PLAIN: dict[str, tuple[Any, ...]] = {
    "bias": ("none",),
    "fan_in_fan_out": (False,),
    "lora_bias": (False,),
    **dict.fromkeys(("layer_replication", "megatron_config", "trainable_token_indices", "target_parameters"), (None,)),
    **dict.fromkeys(("alora_invocation_tokens", "arrow_config", "kasa_config", "velora_config"), (None,)),
    **dict.fromkeys(("use_qalora", "use_bdlora"), (False, None)),
}
HELD_A = 8  # factors kept in memory: those of a layer


class Adapter:
    """The tensors of an adapter folder by the module that they belong to. `config` is adapter_config.json."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.config = plain_config(folder)
        self.tensors = {name.removeprefix(PREFIX): weight for name, weight in _tensors(folder).items()}
        self._unused = set(self.tensors)
        self._low_a = lru_cache(HELD_A)(lambda name: self.tensors[name].whole().float())

    def on(self, name: str, weight: Weight) -> Weight:
        """The weight `name` of the model as this adapter makes it. Raises ConfigError when they do not fit."""
        module = name.removesuffix(".weight")
        if name in self.tensors:  # of modules_to_save: trained whole
            return self._instead(name, weight)
        if name == module or module + LOW_A not in self.tensors:
            return weight
        low_a, low_b = self.tensors[module + LOW_A], self._take(module + LOW_B)
        self._unused -= {module + LOW_A, module + LOW_B, module + LENGTHS}
        if low_b.shape[0] != weight.shape[0] or low_a.shape[1:] != weight.shape[1:]:
            raise ConfigError(
                f"{self.folder}: the adapter on {module} is for {low_b.shape[0]} x {low_a.shape[1]} weights, "
                f"got {' x '.join(map(str, weight.shape))} in the base",
                "name the base that it was trained on",
            )
        lengths = self._take(module + LENGTHS) if self.config.get("use_dora") else None
        scale = self.scale(module, low_a.shape[0])
        return AdaptedWeight(weight, lambda: self._low_a(module + LOW_A), low_b, scale, lengths)

    def scale(self, module: str, rank: int) -> float:
        """The factor of B A on a module. `rank`: rows of its A. Raises ConfigError when the config says another."""
        alpha = _by_pattern(self.config.get("alpha_pattern") or {}, module, self.config["lora_alpha"])
        said = _by_pattern(self.config.get("rank_pattern") or {}, module, self.config["r"])
        if said != rank:
            raise ConfigError(f"{self.folder}: rank {rank} on {module}, but {ADAPTER} says {said}")
        return float(alpha / (math.sqrt(rank) if self.config.get("use_rslora") else rank))

    def refuse_unused(self) -> None:
        """Raise ConfigError when some of its tensors found no weight: they would be lost."""
        if self._unused:
            first = min(self._unused)
            raise ConfigError(
                f"{self.folder}: {len(self._unused)} tensors are for no weight of the base, the first is {first}",
                "name the base that it was trained on; adapters on wqkv: see --adapter-only",
            )

    def _instead(self, name: str, weight: Weight) -> Weight:
        self._unused.discard(name)
        if self.tensors[name].shape != weight.shape:
            raise ConfigError(
                f"{self.folder}: {name} was trained with {list(self.tensors[name].shape)}, the base has "
                f"{list(weight.shape)}: a resized vocabulary is not merged",
                "resize the base and its tokenizer first, and train on that",
            )
        return self.tensors[name]

    def _take(self, name: str) -> Weight:
        if name not in self.tensors:
            raise ConfigError(f"{self.folder}: {TENSORS} has no {name}", "the adapter was not written to its end")
        return self.tensors[name]


class AdaptedWeight(Weight):
    """W + scale * B A, float32; with `lengths` [rows] each row has its length. A: [r, in], B: [rows, r]."""

    def __init__(
        self, base: Weight, low_a: Callable[[], torch.Tensor], low_b: Weight, scale: float, lengths: Weight | None
    ) -> None:
        self.base, self.low_a, self.low_b, self.scale, self.lengths = base, low_a, low_b, scale, lengths
        self.shape, self.dtype = base.shape, torch.float32

    def rows(self, start: int, stop: int) -> torch.Tensor:
        changed = self.base.rows(start, stop).float()
        changed.addmm_(self.low_b.rows(start, stop).float(), self.low_a(), alpha=self.scale)
        if self.lengths is not None:
            wanted = self.lengths.rows(start, stop).float()
            changed.mul_((wanted / torch.linalg.norm(changed, dim=1))[:, None])
        return changed


def plain_config(folder: Path) -> dict[str, Any]:
    """adapter_config.json. Raises ConfigError for adapters whose arithmetic is another one."""
    config = read_adapter(folder)
    for key, allowed in PLAIN.items():
        got = config.get(key, allowed[0])
        if got not in allowed and got:
            raise ConfigError(f"{folder}: got {key} {got} in {ADAPTER}, allowed: {allowed[0]}",
                              "merge it with the library that trained it")  # fmt: skip
    return config


def _tensors(folder: Path) -> dict[str, Weight]:
    if not (folder / TENSORS).is_file():
        raise ConfigError(f"{folder}: no adapter: {TENSORS} is missing")
    return safetensors_weights(folder / TENSORS)


def _by_pattern(pattern: dict[str, Any], module: str, default: Any) -> Any:
    """PEFT's rule: the first key that the end of a module's name matches, as a regular expression."""
    return next((value for key, value in pattern.items() if re.match(rf"(.*\.)?({key})$", module)), default)
