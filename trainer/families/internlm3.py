"""InternLM3: a Llama under Llama's own weight names, with a head width of its own and `qkv_bias` and `bias` for Llama's
biases (InternLM3's config.json; transformers has the same class from 5.23 on, and older ones do not know it)."""

from typing import Any

from trainer.errors import ConfigError
from trainer.families.internlm2 import SHARED_FIELDS
from trainer.families.rope import rope_parameters


def llama_config(raw: dict[str, Any]) -> Any:
    """transformers' LlamaConfig for an InternLM3 config.json. Raises ConfigError for biases that Llama cannot have."""
    from transformers import LlamaConfig

    qkv_bias, bias = bool(raw.get("qkv_bias", False)), bool(raw.get("bias", False))
    if qkv_bias != bias:
        raise ConfigError(
            f"config.json: got qkv_bias {qkv_bias} with bias {bias}, allowed: both alike, as in InternLM3's checkpoints"
        )
    fields = {key: raw[key] for key in (*SHARED_FIELDS, "head_dim") if raw.get(key) is not None}
    rope = raw.get("rope_parameters") or raw.get("rope_scaling")
    theta = raw.get("rope_theta") or (rope or {}).get("rope_theta", 10000.0)
    return LlamaConfig(
        **{"tie_word_embeddings": False, **fields},
        attention_bias=qkv_bias,
        mlp_bias=bias,
        rope_parameters=rope_parameters(float(theta), rope),
    )
