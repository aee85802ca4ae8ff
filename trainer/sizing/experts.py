"""Mixtures of experts, as far as a config.json tells, and what a job asks of one that cannot be done. No torch."""

import re
from collections.abc import Mapping
from typing import Any

from trainer.config.job import Model

# num_local_experts, n_routed_experts, moe_num_experts ...; not num_experts_per_tok, n_shared_experts
_COUNT = re.compile(r"(moe_)?(n|num)_((local|routed)_)?experts")


def expert_count(raw: Mapping[str, Any]) -> int:
    """The experts of a layer, by a config.json; 0 for a dense model."""
    text = raw.get("text_config")
    values = {**raw, **(text if isinstance(text, Mapping) else {})}
    counts = [value for key, value in values.items() if _COUNT.fullmatch(key) and isinstance(value, int)]
    return max((count for count in counts if count > 1), default=0)


def quantised_experts(model: Model, name: str, what: str) -> tuple[str, str]:
    """Why a mixture of experts is not trained quantised, and what can be done. `what`: its experts, in numbers."""
    return (
        f"model.quantization is {model.quantization}, but {name} is a mixture of experts: {what} can be neither "
        f"quantised nor adapted here, and would stay in {model.dtype} as they are",
        "set model.quantization to none, which trains adapters of the attention over experts in bf16, or choose a "
        "dense model",
    )
