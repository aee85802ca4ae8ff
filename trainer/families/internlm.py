"""InternLM v1: a Llama with biases on the attention's four matrices, under Llama's own weight names
(InternLM's model code; the bias was added to transformers for it in PR 26302)."""

from typing import Any

from trainer.families.card import Card, NewModels
from trainer.families.llama_fields import SHARED_FIELDS, rope_parameters
from trainer.families.native import same_name
from trainer.families.shape import config_fields, llama_shape, on_hub, tiny

SLOTS = {103027: "<eoh>", 103028: "<eoa>"}


def llama_config(raw: dict[str, Any]) -> Any:
    """transformers' LlamaConfig for an InternLM config.json. `rotary: {type: dynamic}` is dynamic NTK with factor 1."""
    from transformers import LlamaConfig

    rotary = raw.get("rotary") or {}
    factor = rotary.get("scaling_factor", 1.0)
    scaling = {"type": "dynamic", "factor": factor} if rotary.get("type") == "dynamic" else None
    fields = {key: raw[key] for key in SHARED_FIELDS if key in raw}
    return LlamaConfig(
        **{"tie_word_embeddings": False, **fields},
        attention_bias=bool(raw.get("bias", True)),
        rope_parameters=rope_parameters(float(rotary.get("base", 10000.0)), scaling),
    )


def llama_model(config: Any) -> Any:
    """A LlamaForCausalLM whose cached keys follow the base past the trained length."""
    from trainer.families import internlm_cache

    return internlm_cache.llama_model(config)


_SIZES = {
    "7b": llama_shape(103168, 4096, 11008, 32, (32, 32), qkv_bias=True, out_bias=True),
    "20b": llama_shape(103168, 5120, 13824, 60, (40, 40)),
}

CARD = Card(
    "internlm", llama_config, llama_model, same_name,
    biases={"qkv": "bias", "out": "bias"},
    defaults={"bias": True},
    hub=on_hub(("internlm/internlm-{}", "internlm/internlm-chat-{}"), _SIZES),
    template="internlm", slots=SLOTS, slots_vocab=103168,
    new=NewModels(
        "InternLMForCausalLM",
        {"rms_norm_eps": 1e-6, "rotary": {"type": "dynamic", "base": 10000}, "max_position_embeddings": 2048,
         "bias": True},
        {"tiny": tiny(4), "7b": config_fields(_SIZES["7b"]),
         "20b": config_fields(_SIZES["20b"], bias=False, max_position_embeddings=4096)},
        has_pieces=True,
    ),
)  # fmt: skip
