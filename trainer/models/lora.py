"""Adapters on the linear layers of a model."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from trainer.config.sections import Lora
from trainer.errors import ConfigError
from trainer.models.experts import blocks_of_experts

# what a head is called where the model itself does not say which layer it is
HEADS = ("lm_head", "output", "output_layer", "embed_out")
# names of the parts of multimodal models that look at images or sounds, and bring them to the language model
TOWERS = r"(.*\.)?(vision|visual|vit|image|audio|mm_|multi_modal)[^.]*\..*"
START = "pissa_start"
PREFIX = "base_model.model."  # before the names of weights in an adapter's file (PEFT)


def target_names(model: torch.nn.Module) -> list[str]:
    """Last names of all linear layers but the head, those of vision and audio towers, and those beside experts, sorted:
    of a name that a block of experts has, PEFT would adapt the stacks instead of the linear layers."""
    blocks = tuple(f"{name}." for name in blocks_of_experts(model))
    names = [name for name in _linears(model) if not re.fullmatch(TOWERS, name)]
    beside = {name.rpartition(".")[2] for name in names if name.startswith(blocks)}
    return sorted({name.rpartition(".")[2] for name in names} - beside)


def _linears(model: Any) -> Iterator[str]:
    """Names of the linear layers but the head. GPT-2's are of a class of their own."""
    from transformers.pytorch_utils import Conv1D

    find_head = getattr(model, "get_output_embeddings", lambda: None)
    head = find_head()
    for name, module in model.named_modules():
        is_head = module is head or name.rpartition(".")[2] in HEADS
        if isinstance(module, torch.nn.Linear | Conv1D) and not is_head:
            yield name


def attach_lora(model: Any, lora: Lora, base: str) -> Any:
    """A PeftModel around `model`; `base` is the path that the adapter names as its base. Raises ConfigError."""
    from peft import LoraConfig, get_peft_model

    found = target_names(model)
    if not found:
        raise ConfigError(f"model.lora: got {type(model).__name__}, allowed: a model with linear layers")
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
            use_rslora=lora.rslora,
            use_dora=lora.dora,
            init_lora_weights="pissa" if lora.init == "pissa" else True,
            bias="none",
            target_modules=lora.targets or found,
            exclude_modules=TOWERS if any(re.fullmatch(TOWERS, name) for name in _linears(model)) else None,
            task_type="CAUSAL_LM",
        ),
    )


def is_of_adapter(name: str) -> bool:
    """Whether a weight is one that peft has added, by its name in a PeftModel."""
    return ".lora_" in name and ".default" in name


def lora_plus(model: Any, optimizer: type[torch.optim.Optimizer], lora: Lora, settings: dict[str, Any]) -> Any:
    """LoRA+ (PEFT's loraplus helper): the B matrices in groups of their own, with `lora.lr_ratio` times the rate.
    `settings`: those of the optimizer, `weight_decay` among them."""
    from peft.optimizers import create_loraplus_optimizer

    rest = {key: value for key, value in settings.items() if key not in ("lr", "weight_decay")}
    return create_loraplus_optimizer(
        model,
        optimizer,
        lr=settings["lr"],
        loraplus_lr_ratio=lora.lr_ratio,
        loraplus_weight_decay=settings["weight_decay"],
        **rest,
    )


def keep_start(model: Any, output: Path) -> None:
    """Write down the adapter that PiSSA has taken out of the base, for `save_adapter`."""
    if _is_pissa(model):
        model.save_pretrained(output / START)


def save_adapter(model: Any, weights: dict[str, torch.Tensor], output: Path) -> None:
    """adapter/, for the base as it is on disk: PiSSA's result is the difference to what it started from, as an adapter
    of twice the rank (PEFT's conversion)."""
    if _is_pissa(model):  # whose weights no rank has in parts
        model.save_pretrained(output / "adapter", path_initial_model_for_weight_conversion=str(output / START))
    else:
        model.save_pretrained(output / "adapter", state_dict=weights)


def _is_pissa(model: Any) -> bool:
    return bool(model.peft_config["default"].init_lora_weights == "pissa")
