"""Sizes that `new-model` makes: config.json of each family as its makers write it, and a tiny one for tests."""

from dataclasses import dataclass, field
from typing import Any

from trainer.errors import ConfigError
from trainer.families.xcomposer2_shape import MODEL_TYPE
from trainer.models.tokenizer import INTERNLM2_SLOTS, INTERNLM_SLOTS
from trainer.sizing.shapes import HUB_SHAPES, ModelShape

TINY_VOCAB = 512


@dataclass(frozen=True)
class Line:
    """One family: its class, chat template (trainer.data.templates), what all sizes share, and the sizes by name.
    `slots`: where a vocabulary of its own size has its chat tokens; the others have them at the end."""

    architecture: str
    template: str
    shared: dict[str, Any]
    sizes: dict[str, dict[str, Any]]
    slots: dict[int, str] = field(default_factory=dict)


def _of_hub(name: str, **more: Any) -> dict[str, Any]:
    return {**_fields(HUB_SHAPES[name]), **more}


def _fields(shape: ModelShape) -> dict[str, Any]:
    return {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "tie_word_embeddings": shape.tied,
    }


def _tiny(kv_heads: int = 2, tied: bool = False, **more: Any) -> dict[str, Any]:
    return {**_fields(ModelShape(TINY_VOCAB, 64, 128, 2, 4, kv_heads, 16, tied=tied)), **more}


_INTERNLM2 = {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "rope_scaling": {"type": "dynamic", "factor": 2.0},
              "max_position_embeddings": 32768, "bias": False}  # fmt: skip
_INTERNLM3 = {"rms_norm_eps": 1e-5, "rope_theta": 5e7, "rope_scaling": {"rope_type": "dynamic", "factor": 6.0},
              "max_position_embeddings": 32768, "bias": False, "qkv_bias": False}  # fmt: skip
_XCOMPOSER2 = {"model_type": "internlmxcomposer2", "max_length": 4096}
_TINY_VIT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_GEMMA = {"rms_norm_eps": 1e-6, "max_position_embeddings": 8192, "hidden_activation": "gelu_pytorch_tanh"}
_GEMMA2 = {**_GEMMA, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "query_pre_attn_scalar": 256,
           "sliding_window": 4096}  # fmt: skip
_GEMMA3 = {**_GEMMA, "max_position_embeddings": 32768, "query_pre_attn_scalar": 256, "sliding_window": 512,
           "rope_theta": 1e6, "rope_local_base_freq": 1e4}  # fmt: skip

# values as in the config.json files of the makers' repositories on the hub
LINES: dict[str, Line] = {
    "internlm": Line(
        "InternLMForCausalLM", "internlm",
        {"rms_norm_eps": 1e-6, "rotary": {"type": "dynamic", "base": 10000}, "max_position_embeddings": 2048,
         "bias": True},
        {"tiny": _tiny(4), "7b": _of_hub("internlm/internlm-7b"),
         "20b": _of_hub("internlm/internlm-20b", bias=False, max_position_embeddings=4096)},
        INTERNLM_SLOTS,
    ),
    "internlm2": Line(
        "InternLM2ForCausalLM", "internlm2", _INTERNLM2,
        {"tiny": _tiny(), "1_8b": _of_hub("internlm/internlm2-1_8b"), "7b": _of_hub("internlm/internlm2-7b"),
         "20b": _of_hub("internlm/internlm2-20b", rope_scaling={"type": "dynamic", "factor": 3.0})},
        INTERNLM2_SLOTS,
    ),
    MODEL_TYPE: Line(
        "InternLMXComposer2ForCausalLM", "internlm2", {**_INTERNLM2, **_XCOMPOSER2},
        {"tiny": _tiny(img_size=28, plora_rank=8, vision_config=_TINY_VIT),
         "7b": _of_hub("internlm/internlm-xcomposer2-7b", img_size=224),
         "vl_7b": _of_hub("internlm/internlm-xcomposer2-vl-7b", img_size=490)},
        INTERNLM2_SLOTS,
    ),
    "internlm3": Line(
        "InternLM3ForCausalLM", "internlm3", _INTERNLM3,
        {"tiny": _tiny(), "8b": _of_hub("internlm/internlm3-8b-instruct")},
    ),
    "llama": Line(
        "LlamaForCausalLM", "llama3", {"rms_norm_eps": 1e-5, "rope_theta": 5e5, "max_position_embeddings": 8192},
        {"tiny": _tiny(),
         "7b": _of_hub("meta-llama/Llama-2-7b-hf", rope_theta=1e4, max_position_embeddings=4096),
         "8b": _of_hub("meta-llama/Meta-Llama-3-8B")},
    ),
    "mistral": Line(
        "MistralForCausalLM", "mistral",
        {"rms_norm_eps": 1e-5, "rope_theta": 1e6, "max_position_embeddings": 32768, "sliding_window": None},
        {"tiny": _tiny(), "7b": _of_hub("mistralai/Mistral-7B-v0.3")},
    ),
    "qwen2": Line(
        "Qwen2ForCausalLM", "qwen", {"rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 32768},
        {"tiny": _tiny(tied=True), "0_5b": _of_hub("Qwen/Qwen2.5-0.5B"), "1_5b": _of_hub("Qwen/Qwen2.5-1.5B"),
         "7b": _of_hub("Qwen/Qwen2.5-7B")},
    ),
    "qwen3": Line(
        "Qwen3ForCausalLM", "qwen", {"rms_norm_eps": 1e-6, "rope_theta": 1e6, "max_position_embeddings": 40960},
        {"tiny": _tiny(tied=True), "0_6b": _of_hub("Qwen/Qwen3-0.6B"), "1_7b": _of_hub("Qwen/Qwen3-1.7B"),
         "8b": _of_hub("Qwen/Qwen3-8B")},
    ),
    "gemma": Line(
        "GemmaForCausalLM", "gemma", _GEMMA,
        {"tiny": _tiny(1, tied=True), "2b": _of_hub("google/gemma-2b"),
         "7b": _of_hub("google/gemma-7b")},
    ),
    "gemma2": Line(
        "Gemma2ForCausalLM", "gemma", _GEMMA2,
        {"tiny": _tiny(tied=True), "2b": _of_hub("google/gemma-2-2b"),
         "9b": _of_hub("google/gemma-2-9b")},
    ),
    "gemma3_text": Line(
        "Gemma3ForCausalLM", "gemma", _GEMMA3,
        {"tiny": _tiny(1, tied=True), "1b": _of_hub("google/gemma-3-1b-pt")},
    ),
    "phi3": Line(
        "Phi3ForCausalLM", "phi3",
        {"rms_norm_eps": 1e-5, "rope_theta": 1e4, "max_position_embeddings": 4096, "sliding_window": 2047},
        {"tiny": _tiny(), "3_8b": _of_hub("microsoft/Phi-3-mini-4k-instruct")},
    ),
}  # fmt: skip


def find_size(family: str, size: str) -> tuple[Line, dict[str, Any]]:
    """A family's line and config.json of one size. Raises ConfigError."""
    if family not in LINES:
        raise ConfigError(f"--family: got {family}, allowed: {', '.join(LINES)}")
    line = LINES[family]
    if size not in line.sizes:
        raise ConfigError(f"--size: got {size}, allowed for {family}: {', '.join(line.sizes)}")
    raw = {"architectures": [line.architecture], "model_type": family, **line.shared, **line.sizes[size]}
    return line, {**raw, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "dtype": "bfloat16"}
