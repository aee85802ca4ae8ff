"""Gemma 3, its text models: four norms a layer, norms over heads, five of six layers see a window."""

from trainer.families import gemma
from trainer.families.card import Card, NewModels
from trainer.families.native import native_config, native_model, same_name
from trainer.families.shape import config_fields, llama_shape, on_hub, tiny

_TRAITS = {"norms": 4, "qk_norm": True}
_SIZES = {"1b": llama_shape(262144, 1152, 6912, 26, (4, 1), **gemma.OWN, **_TRAITS)}

CARD = Card(
    "gemma3_text", native_config, native_model, same_name,
    biases=gemma.BIASES,
    defaults={"head_dim": 256, "num_key_value_heads": 4, "tie_word_embeddings": True},
    traits=_TRAITS,
    hub=on_hub(("google/gemma-3-{}-pt", "google/gemma-3-{}-it"), _SIZES),
    template="gemma", kin=("gemma3",), zero_norms=True,
    new=NewModels(
        "Gemma3ForCausalLM",
        {**gemma.NEW_FIELDS, "max_position_embeddings": 32768, "query_pre_attn_scalar": 256, "sliding_window": 512,
         "rope_theta": 1e6, "rope_local_base_freq": 1e4},
        {"tiny": tiny(1, tied=True), "1b": config_fields(_SIZES["1b"])},
    ),
)  # fmt: skip
