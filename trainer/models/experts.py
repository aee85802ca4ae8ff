"""Weights that are stacks of matrices, as transformers keeps the experts of a mixture of experts. bitsandbytes
quantises linear layers and LoRA adapts them; both pass over a stack in silence, so we do not. [I/O]"""

from collections.abc import Iterator
from typing import Any

import torch

from trainer.config.job import Model
from trainer.errors import ConfigError
from trainer.families.registry import find_family
from trainer.families.xcomposer2_shape import is_xcomposer
from trainer.models.hub import auto_class, config_folder, read_raw_config, require_class
from trainer.sizing.experts import quantised_experts

# of a model's parameters; smaller stacks are gates (RecurrentGemma), not experts
SMALLEST_SHARE = 0.1


def require_quantisable(model: Model) -> None:
    """Raise ConfigError for a quantised job with a mixture of experts, by its config alone: before any weight is read
    or downloaded. The families that this project reads itself have none."""
    from transformers import AutoConfig

    if model.quantization == "none" or model.path is None:
        return
    folder = config_folder(model.path, model.revision, model.trust_remote_code)
    raw = read_raw_config(folder)
    if is_xcomposer(raw) or find_family(raw) is not None:  # of which only a completed config has the family's name
        return
    require_class(model.path, raw, model.trust_remote_code)
    config = AutoConfig.from_pretrained(folder, trust_remote_code=model.trust_remote_code)
    with torch.device("meta"):
        empty = auto_class(raw).from_config(config, trust_remote_code=model.trust_remote_code)
    size = expert_parameters(empty)
    if size:
        raise ConfigError(*quantised_experts(model, model.path, f"the {size:,} parameters of its experts"))


def expert_parameters(model: torch.nn.Module) -> int:
    """How many parameters are in the experts of a mixture of experts."""
    size = sum(_shape(parameter).numel() for _, parameter in _stacks(model))
    total = sum(_shape(parameter).numel() for parameter in model.parameters())
    return size if size >= SMALLEST_SHARE * total else 0


def blocks_of_experts(model: torch.nn.Module) -> set[str]:
    """Names of the modules that experts are a part of, with their router and what all tokens share."""
    if not expert_parameters(model):
        return set()
    return {name.rpartition(".")[0] for name, _ in _stacks(model)}


def _stacks(model: torch.nn.Module) -> Iterator[tuple[str, torch.nn.Parameter]]:
    """The stacks with their module's name. Kernels of convolutions are none, nor are vectors of three dimensions."""
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.modules.conv._ConvNd):
            continue
        for parameter in module.parameters(recurse=False):
            if len(_shape(parameter)) == 3 and min(_shape(parameter)) > 1:
                yield name, parameter


def _shape(parameter: Any) -> torch.Size:
    """On all ranks together (ZeRO-3)."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))
