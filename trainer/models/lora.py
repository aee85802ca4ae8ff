"""Adapters on the linear layers of a model."""

from typing import Any

import torch

from trainer.config import Lora
from trainer.errors import ConfigError

HEADS = ("lm_head", "output", "embed_out")


def target_names(model: torch.nn.Module) -> list[str]:
    """Last names of all linear layers but the head, sorted."""
    names = {name.rpartition(".")[2] for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)}
    return sorted(names - set(HEADS))


def attach_lora(model: Any, lora: Lora, base: str) -> Any:
    """A PeftModel around `model`; `base` is the path that the adapter names as its base. Raises ConfigError."""
    from peft import LoraConfig, get_peft_model

    found = target_names(model)
    unknown = [name for name in lora.targets or [] if name not in found]
    if unknown:
        raise ConfigError(f"model.lora.targets: got {', '.join(unknown)}, allowed: {', '.join(found)}")
    model.name_or_path = base  # peft names the base in the adapter by this
    return get_peft_model(
        model,
        LoraConfig(
            r=lora.r,
            lora_alpha=lora.alpha,
            lora_dropout=lora.dropout,
            bias="none",
            target_modules=lora.targets or found,
            task_type="CAUSAL_LM",
        ),
    )
