"""InternLM3: a Llama under Llama's own weight names, with a head width of its own and `qkv_bias` and `bias` for Llama's
biases (InternLM3's config.json; transformers has the same class from 5.23 on, and older ones do not know it)."""

from typing import Any

from trainer.errors import ConfigError
from trainer.families import internlm2
from trainer.families.card import Card, NewModels
from trainer.families.llama_fields import SHARED_FIELDS, rope_llama, rope_parameters
from trainer.families.native import same_name
from trainer.families.shape import config_fields, llama_shape, on_hub, tiny


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


_SIZES = {"8b": llama_shape(128512, 4096, 10240, 48, (32, 2))}

CARD = Card(
    "internlm3", llama_config, rope_llama, same_name,
    biases={"qkv": "qkv_bias", "out": "bias", "mlp": "bias"},
    hub=on_hub(("internlm/internlm3-{}-instruct",), _SIZES),
    template="internlm3",
    new=NewModels(
        "InternLM3ForCausalLM",
        {"rms_norm_eps": 1e-5, "rope_theta": 5e7, "rope_scaling": {"rope_type": "dynamic", "factor": 6.0},
         "max_position_embeddings": 32768, "bias": False, "qkv_bias": False},
        {"tiny": tiny(), "8b": config_fields(_SIZES["8b"])},
        tokens=tuple(internlm2.SLOTS.values()), has_pieces=True,
    ),
)  # fmt: skip
