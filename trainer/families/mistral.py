"""Mistral 7B."""

from trainer.families.card import Card, NewModels
from trainer.families.native import native_config, native_model, same_name
from trainer.families.shape import config_fields, llama_shape, on_hub, tiny

_FIRST = llama_shape(32000, 4096, 14336, 32, (32, 8))
_THIRD = llama_shape(32768, 4096, 14336, 32, (32, 8))

CARD = Card(
    "mistral", native_config, native_model, same_name,
    defaults={"num_key_value_heads": 8},
    hub={
        **on_hub(("mistralai/Mistral-7B-{}",), {"v0.1": _FIRST, "v0.3": _THIRD}),
        **on_hub(("mistralai/Mistral-7B-Instruct-{}",), {"v0.1": _FIRST, "v0.2": _FIRST, "v0.3": _THIRD}),
    },
    guess="mistral",
    new=NewModels(
        "MistralForCausalLM",
        {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 32768, "sliding_window": None},
        {"tiny": tiny(), "7b": config_fields(_THIRD)},
    ),
)  # fmt: skip
