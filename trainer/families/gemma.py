"""Gemma: norms hold their distance from one, embeddings are scaled, heads are 256 wide."""

from trainer.families.card import Card, NewModels
from trainer.families.native import native_config, native_model, same_name
from trainer.families.shape import config_fields, llama_shape, on_hub, tiny

BIASES = {"qkv": "attention_bias", "out": "attention_bias"}
NEW_FIELDS = {"rms_norm_eps": 1e-6, "max_position_embeddings": 8192, "hidden_activation": "gelu_pytorch_tanh"}
OWN = {"head_dim": 256, "tied": True}
_SIZES = {
    "2b": llama_shape(256000, 2048, 16384, 18, (8, 1), **OWN),
    "7b": llama_shape(256000, 3072, 24576, 28, (16, 16), **OWN),
}

CARD = Card(
    "gemma", native_config, native_model, same_name,
    biases=BIASES,
    defaults={"head_dim": 256, "num_key_value_heads": 16, "tie_word_embeddings": True},
    hub=on_hub(("google/gemma-{}", "google/gemma-{}-it"), _SIZES),
    template="gemma", zero_norms=True,
    new=NewModels("GemmaForCausalLM", NEW_FIELDS, {
        "tiny": tiny(1, tied=True), "2b": config_fields(_SIZES["2b"]), "7b": config_fields(_SIZES["7b"])}),
)  # fmt: skip
