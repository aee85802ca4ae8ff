"""Qwen2 and Qwen2.5."""

from trainer.families.card import Card, NewModels
from trainer.families.native import native_config, native_model, same_name
from trainer.families.shape import config_fields, llama_shape, on_hub, tiny

_QWEN2 = {
    "0.5B": llama_shape(151936, 896, 4864, 24, (14, 2), qkv_bias=True, tied=True),
    "1.5B": llama_shape(151936, 1536, 8960, 28, (12, 2), qkv_bias=True, tied=True),
    "7B": llama_shape(152064, 3584, 18944, 28, (28, 4), qkv_bias=True),
    "72B": llama_shape(152064, 8192, 29568, 80, (64, 8), qkv_bias=True),
}
_QWEN25 = {
    **_QWEN2,
    "3B": llama_shape(151936, 2048, 11008, 36, (16, 2), qkv_bias=True, tied=True),
    "14B": llama_shape(152064, 5120, 13824, 48, (40, 8), qkv_bias=True),
    "32B": llama_shape(152064, 5120, 27648, 64, (40, 8), qkv_bias=True),
}

CARD = Card(
    "qwen2", native_config, native_model, same_name,
    biases={"qkv": "qkv_bias"},
    defaults={"qkv_bias": True},
    hub={**on_hub(("Qwen/Qwen2-{}", "Qwen/Qwen2-{}-Instruct"), _QWEN2),
         **on_hub(("Qwen/Qwen2.5-{}", "Qwen/Qwen2.5-{}-Instruct"), _QWEN25)},
    template="qwen", kin=("qwen2_moe",),
    new=NewModels(
        "Qwen2ForCausalLM", {"rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768},
        {"tiny": tiny(tied=True), "0_5b": config_fields(_QWEN25["0.5B"]), "1_5b": config_fields(_QWEN25["1.5B"]),
         "7b": config_fields(_QWEN25["7B"])},
    ),
)  # fmt: skip
