"""Gemma 2: four norms a layer, capped scores, every other layer sees a window."""

from trainer.families import gemma
from trainer.families.card import Card, NewModels
from trainer.families.native import native_config, native_model, same_name
from trainer.families.shape import config_fields, llama_shape, on_hub, tiny

_TRAITS = {"norms": 4}
_SIZES = {
    "2b": llama_shape(256000, 2304, 9216, 26, (8, 4), **gemma.OWN, **_TRAITS),
    "9b": llama_shape(256000, 3584, 14336, 42, (16, 8), **gemma.OWN, **_TRAITS),
}

CARD = Card(
    "gemma2", native_config, native_model, same_name,
    biases=gemma.BIASES,
    defaults={"head_dim": 256, "num_key_value_heads": 4, "tie_word_embeddings": True},
    traits=_TRAITS,
    hub=on_hub(("google/gemma-2-{}", "google/gemma-2-{}-it"), _SIZES),
    template="gemma", zero_norms=True,
    new=NewModels(
        "Gemma2ForCausalLM",
        {**gemma.NEW_FIELDS, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0,
         "query_pre_attn_scalar": 256, "sliding_window": 4096},
        {"tiny": tiny(tied=True), "2b": config_fields(_SIZES["2b"]), "9b": config_fields(_SIZES["9b"])},
    ),
)  # fmt: skip
