"""What the InternLM families' config.json files and transformers' LlamaConfig have in common. Imports no torch."""

from typing import Any

SHARED_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "tie_word_embeddings",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)


def rope_parameters(theta: float, scaling: dict[str, Any] | None) -> dict[str, Any]:
    """transformers' form of a config.json's base and `rope_scaling`, whose kind is under `type` or `rope_type`."""
    kind = (scaling or {}).get("rope_type") or (scaling or {}).get("type", "default")
    if not scaling or kind == "default":
        return {"rope_type": "default", "rope_theta": theta}
    return {"rope_type": kind, "rope_theta": theta, "factor": float(scaling.get("factor", 1.0))}


def rope_llama(config: Any) -> Any:
    """A LlamaForCausalLM, with the InternLM models' dynamic NTK where its config says so (trainer.families.rope)."""
    from trainer.families import rope

    return rope.rope_llama(config)
