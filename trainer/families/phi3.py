"""Phi-3: query, key and value are one linear layer, gate and up another."""

from trainer.families.card import Card, NewModels
from trainer.families.native import native_config, native_model, same_name
from trainer.families.shape import config_fields, llama_shape, on_hub, tiny

_TRAITS = {"fused": True}
_SIZES = {"mini-4k": llama_shape(32064, 3072, 8192, 32, (32, 32), **_TRAITS)}

CARD = Card(
    "phi3", native_config, native_model, same_name,
    traits=_TRAITS,
    hub=on_hub(("microsoft/Phi-3-{}-instruct",), _SIZES),
    guess="phi3",
    new=NewModels(
        "Phi3ForCausalLM",
        {"rms_norm_eps": 1e-5, "rope_theta": 1e4, "max_position_embeddings": 4096, "sliding_window": 2047},
        {"tiny": tiny(), "3_8b": config_fields(_SIZES["mini-4k"])},
    ),
)  # fmt: skip
