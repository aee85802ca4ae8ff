"""Families whose checkpoints hold the weights of transformers' own class under the same names: nothing to convert."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def native_config(raw: dict[str, Any]) -> Any:
    """transformers' config for a config.json."""
    from transformers import CONFIG_MAPPING

    return CONFIG_MAPPING[raw["model_type"]].from_dict(raw)


def native_model(config: Any) -> Any:
    """transformers' causal model for a config, made here: its Auto class would let DeepSpeed split it."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    if getattr(config, "attn_logit_softcapping", None):  # which torch's own attention, used before 5.20, leaves out
        config._attn_implementation = "eager"
    return MODEL_FOR_CAUSAL_LM_MAPPING[type(config)](config)


def same_name(name: str, tensor: "torch.Tensor", config: Any) -> list[tuple[str, "torch.Tensor"]]:
    """The weight under its own name; the rotary buffers that old checkpoints have are computed, not read."""
    return [] if name.endswith("rotary_emb.inv_freq") else [(name, tensor)]
