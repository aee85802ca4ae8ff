"""InternLM2 and 2.5: a Llama with fused query, key and value weights (trainer.families.internlm2_layout) and dynamic
NTK."""

from typing import TYPE_CHECKING, Any

from trainer.families.card import Card, Layout, NewModels
from trainer.families.llama_fields import SHARED_FIELDS, rope_llama, rope_parameters
from trainer.families.shape import config_fields, llama_shape, on_hub, tiny

if TYPE_CHECKING:
    import torch

# id -> name, in a vocabulary of 92,544 (InternLM2 and 2.5 chat models' tokenizer_config.json)
SLOTS = {
    92538: "<|plugin|>",
    92539: "<|interpreter|>",
    92540: "<|action_end|>",
    92541: "<|action_start|>",
    92542: "<|im_end|>",
    92543: "<|im_start|>",
}


def llama_config(raw: dict[str, Any]) -> Any:
    """transformers' LlamaConfig for an InternLM2 config.json."""
    from transformers import LlamaConfig

    fields = {key: raw[key] for key in SHARED_FIELDS if key in raw}
    rope = rope_parameters(float(raw.get("rope_theta", 10000.0)), raw.get("rope_scaling"))
    bias = bool(raw.get("bias", False))
    return LlamaConfig(
        **{"tie_word_embeddings": False, **fields}, attention_bias=bias, mlp_bias=False, rope_parameters=rope
    )


def internlm2_config(config: Any) -> dict[str, Any]:
    """An InternLM2 config.json for a LlamaConfig."""
    rope = config.rope_parameters
    scaling = None if rope["rope_type"] == "default" else {"type": rope["rope_type"], "factor": rope["factor"]}
    return {
        "architectures": ["InternLM2ForCausalLM"],
        "model_type": "internlm2",
        **{key: getattr(config, key) for key in SHARED_FIELDS},
        "bias": config.attention_bias,
        "rope_theta": rope["rope_theta"],
        "rope_scaling": scaling,
        "use_cache": True,
        "dtype": "bfloat16",
    }


def to_llama(name: str, tensor: "torch.Tensor", config: Any) -> list[tuple[str, "torch.Tensor"]]:
    """One weight of a checkpoint as Llama's."""
    from trainer.families import internlm2_layout

    return internlm2_layout.to_llama(name, tensor, config)


def from_llama(weights: dict[str, "torch.Tensor"], config: Any) -> dict[str, "torch.Tensor"]:
    """Llama's weights in InternLM2's layout."""
    from trainer.families import internlm2_layout

    return internlm2_layout.from_llama(weights, config)


_SIZES = {
    "1_8b": llama_shape(92544, 2048, 8192, 24, (16, 8)),
    "7b": llama_shape(92544, 4096, 14336, 32, (32, 8)),
    "20b": llama_shape(92544, 6144, 16384, 48, (48, 8)),
}
_FORMS = ("internlm/internlm2-{}", "internlm/internlm2-base-{}", "internlm/internlm2-chat-{}",
          "internlm/internlm2-chat-{}-sft", "internlm/internlm2_5-{}", "internlm/internlm2_5-{}-chat",
          "internlm/internlm2_5-{}-chat-1m")  # fmt: skip
NEW_FIELDS = {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "rope_scaling": {"type": "dynamic", "factor": 2.0},
              "max_position_embeddings": 32768, "bias": False}  # fmt: skip

CARD = Card(
    "internlm2", llama_config, rope_llama, to_llama, Layout(from_llama),
    biases={"qkv": "bias", "out": "bias"},
    hub=on_hub(_FORMS, _SIZES),
    template="internlm2", slots=SLOTS, slots_vocab=92544,
    new=NewModels("InternLM2ForCausalLM", NEW_FIELDS, {
        "tiny": tiny(),
        "1_8b": config_fields(_SIZES["1_8b"]),
        "7b": config_fields(_SIZES["7b"]),
        "20b": config_fields(_SIZES["20b"], rope_scaling={"type": "dynamic", "factor": 3.0}),
    }, tokens=tuple(SLOTS.values()), has_pieces=True),
)  # fmt: skip
