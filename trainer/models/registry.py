"""Model families by the `model_type` of their config.json: how a checkpoint becomes a class of transformers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from trainer.models import internlm, internlm2, xcomposer2
from trainer.models.xcomposer2_config import MODEL_TYPE as XCOMPOSER2

Weights = list[tuple[str, torch.Tensor]]


def llama(config: Any) -> Any:
    """A LlamaForCausalLM of this config."""
    from transformers import LlamaForCausalLM

    return LlamaForCausalLM(config)


@dataclass(frozen=True)
class Family:
    """`config`: raw config.json -> LlamaConfig. `convert`: one weight of the checkpoint -> weights of the model.
    `model`: config -> the model."""

    config: Callable[[dict[str, Any]], Any]
    convert: Callable[[str, torch.Tensor, Any], Weights]
    model: Callable[[Any], Any] = llama


# Families that transformers has no class for; every other model goes through its Auto class.
FAMILIES: dict[str, Family] = {
    "internlm2": Family(internlm2.llama_config, internlm2.to_llama),
    "internlm": Family(internlm.llama_config, internlm.to_llama),
    XCOMPOSER2: Family(xcomposer2.llama_config, xcomposer2.convert, xcomposer2.XComposer2ForCausalLM),
}
