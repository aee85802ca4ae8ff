"""Qwen3: a norm over each query and key head."""

from trainer.families.card import Card, NewModels
from trainer.families.native import native_config, native_model, same_name
from trainer.families.shape import config_fields, llama_shape, on_hub, tiny

_TRAITS = {"qk_norm": True}
_OWN = {"head_dim": 128, **_TRAITS}
_SIZES = {
    "0.6B": llama_shape(151936, 1024, 3072, 28, (16, 8), tied=True, **_OWN),
    "1.7B": llama_shape(151936, 2048, 6144, 28, (16, 8), tied=True, **_OWN),
    "4B": llama_shape(151936, 2560, 9728, 36, (32, 8), tied=True, **_OWN),
    "8B": llama_shape(151936, 4096, 12288, 36, (32, 8), **_OWN),
    "14B": llama_shape(151936, 5120, 17408, 40, (40, 8), **_OWN),
    "32B": llama_shape(151936, 5120, 25600, 64, (64, 8), **_OWN),
}

CARD = Card(
    "qwen3", native_config, native_model, same_name,
    biases={"qkv": "attention_bias", "out": "attention_bias"},
    defaults={"head_dim": 128},
    traits=_TRAITS,
    hub=on_hub(("Qwen/Qwen3-{}", "Qwen/Qwen3-{}-Base"), _SIZES),
    template="qwen", kin=("qwen3_moe",),
    new=NewModels(
        "Qwen3ForCausalLM", {"rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 40960},
        {"tiny": tiny(tied=True), "0_6b": config_fields(_SIZES["0.6B"]), "1_7b": config_fields(_SIZES["1.7B"]),
         "8b": config_fields(_SIZES["8B"])},
    ),
)  # fmt: skip
