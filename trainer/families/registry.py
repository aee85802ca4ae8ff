"""Model families by the `model_type` of their config.json: how a checkpoint becomes a class of transformers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from trainer.families import internlm, internlm2, internlm3, native, xcomposer2
from trainer.families.rope import rope_llama
from trainer.families.xcomposer2_shape import MODEL_TYPE as XCOMPOSER2

Weights = list[tuple[str, torch.Tensor]]


@dataclass(frozen=True)
class Family:
    """`config`: raw config.json -> config of the class. `convert`: one weight of the checkpoint -> weights of the
    class. `model`: config -> model; it is called where parameters get no memory."""

    config: Callable[[dict[str, Any]], Any]
    convert: Callable[[str, torch.Tensor, Any], Weights]
    model: Callable[[Any], Any] = rope_llama


# What our own loader reads; every other model goes through transformers' Auto class.
FAMILIES: dict[str, Family] = {
    "internlm": Family(internlm.llama_config, internlm.to_llama, internlm.llama_model),
    "internlm2": Family(internlm2.llama_config, internlm2.to_llama),
    "internlm3": Family(internlm3.llama_config, native.same_name),
    XCOMPOSER2: Family(xcomposer2.llama_config, xcomposer2.convert, xcomposer2.XComposer2ForCausalLM),
    **dict.fromkeys(native.KINDS, Family(native.native_config, native.same_name, native.native_model)),
}


def find_family(raw: dict[str, Any]) -> Family | None:
    """The family of a config.json. None: transformers reads it, as it does every quantised checkpoint."""
    if raw.get("quantization_config"):
        return None
    kind = str(raw.get("model_type"))
    if kind == "internlm" and "InternLM2ForCausalLM" in (raw.get("architectures") or []):
        kind = "internlm2"  # early InternLM2 checkpoints call themselves so
    return FAMILIES.get(kind)
