"""Model families by the `model_type` of their config.json: how a checkpoint becomes a class of transformers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from trainer.models import internlm, internlm2

Weights = list[tuple[str, torch.Tensor]]


@dataclass(frozen=True)
class Family:
    """`config`: raw config.json -> LlamaConfig. `convert`: one weight of the checkpoint -> Llama weights."""

    config: Callable[[dict[str, Any]], Any]
    convert: Callable[[str, torch.Tensor, Any], Weights]


# Families that transformers has no class for; every other model goes through its Auto class.
FAMILIES: dict[str, Family] = {
    "internlm2": Family(internlm2.llama_config, internlm2.to_llama),
    "internlm": Family(internlm.llama_config, internlm.to_llama),
}
