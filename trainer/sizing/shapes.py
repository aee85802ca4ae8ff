"""The size of a model as numbers: from its config.json, from a table of hub names, or from a job's own `model.shape`.

Imports no torch and reads no file. Only families with Llama's layers are known: grouped key heads, a gated feed-forward
half, RMSNorm, one embedding and one head; XComposer2 has parts that see images besides. Parameter counts are those of
the models that the trainer makes of the checkpoints, to the last one.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from trainer.config.job import Shape
from trainer.families.xcomposer2_shape import (
    MODEL_TYPE,
    PLORA_RANK,
    is_xcomposer,
    other_version,
    projector_parameters,
    tower_parameters,
    vision_sizes,
)
from trainer.sizing.experts import expert_count


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder with Llama's layers. `qkv_bias`, `out_bias`, `mlp_bias`: which linear layers have one;
    `qk_norm`: a norm over each query and key head (Qwen3); `tied`: the head is the embedding; `norms`: of a layer, over
    its whole width; `fused`: query, key and value are one linear layer, gate and up another (Phi-3); `seeing`: frozen
    parameters for images, never quantised. (What a tower computes is not kept, and takes less than a decoder layer.)"""

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    norms: int = 2
    fused: bool = False
    seeing: int = 0

    @property
    def query_width(self) -> int:
        """Elements of all query heads; also those of the attention's output."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Elements of all key heads, or of all value heads."""
        return self.kv_heads * self.head_dim

    @property
    def qkv_width(self) -> int:
        """Elements of a token's query, key and value together."""
        return self.query_width + 2 * self.kv_width

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Name -> (inputs, outputs) of the linear layers of one decoder layer, by the trainer's names."""
        ends = {"o_proj": (self.query_width, self.hidden), "down_proj": (self.intermediate, self.hidden)}
        if self.fused:
            starts = {"qkv_proj": self.qkv_width, "gate_up_proj": 2 * self.intermediate}
        else:
            starts = {
                "q_proj": self.query_width,
                "k_proj": self.kv_width,
                "v_proj": self.kv_width,
                "gate_proj": self.intermediate,
                "up_proj": self.intermediate,
            }
        return {**{name: (self.hidden, outputs) for name, outputs in starts.items()}, **ends}

    @property
    def linear_parameters(self) -> int:
        """Weights of all linear layers but the head, without biases: what is quantised."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def parameters(self) -> int:
        """All parameters; a tied head counts once."""
        biases = self.qkv_bias * self.qkv_width + self.out_bias * self.hidden
        biases += self.mlp_bias * (2 * self.intermediate + self.hidden)
        norms = self.norms * self.hidden + self.qk_norm * 2 * self.head_dim
        tables = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.linear_parameters + self.layers * (biases + norms) + tables + self.hidden + self.seeing

    @property
    def largest_weight(self) -> int:
        """Elements of the largest single weight."""
        return self.hidden * max(self.vocab, self.intermediate, self.query_width)


_ALONE = ("o_proj", "gate_proj", "up_proj", "down_proj")
LARGEST_SIZE = 10**9  # of anything that a config.json counts

# model_type -> the key of config.json that says whether such layers have a bias
_BIAS_KEYS: dict[str, dict[str, str]] = {
    "llama": {"qkv": "attention_bias", "out": "attention_bias", "mlp": "mlp_bias"},
    "mistral": {},
    "qwen2": {"qkv": "qkv_bias"},
    "qwen3": {"qkv": "attention_bias", "out": "attention_bias"},
    "internlm": {"qkv": "bias", "out": "bias"},
    "internlm2": {"qkv": "bias", "out": "bias"},
    "internlm3": {"qkv": "qkv_bias", "out": "bias", "mlp": "bias"},
    **{kind: {"qkv": "attention_bias", "out": "attention_bias"} for kind in ("gemma", "gemma2", "gemma3_text")},
    "phi3": {},
    MODEL_TYPE: {"qkv": "bias", "out": "bias"},
}
# what a config.json may leave to the model's code
_DEFAULTS: dict[str, dict[str, Any]] = {
    "internlm": {"bias": True},
    "mistral": {"num_key_value_heads": 8},
    "qwen2": {"qkv_bias": True},
    "qwen3": {"head_dim": 128},
    "gemma": {"head_dim": 256, "num_key_value_heads": 16, "tie_word_embeddings": True},
    "gemma2": {"head_dim": 256, "num_key_value_heads": 4, "tie_word_embeddings": True},
    "gemma3_text": {"head_dim": 256, "num_key_value_heads": 4, "tie_word_embeddings": True},
}


def shape_of_config(raw: Mapping[str, Any]) -> ModelShape:
    """The shape that a config.json describes. Raises ValueError with what is missing or not known."""
    kind = MODEL_TYPE if is_xcomposer(raw) else raw.get("model_type")
    if experts := expert_count(raw):
        raise ValueError(f"got a mixture of {experts} experts, known: dense models")
    if kind not in _BIAS_KEYS:
        raise ValueError(f"got model_type {kind!r}, known: {', '.join(_BIAS_KEYS)}")
    values = {**_DEFAULTS.get(kind, {}), **{key: value for key, value in raw.items() if value is not None}}
    hidden, heads = _size(values, "hidden_size"), _size(values, "num_attention_heads")
    values = {"num_key_value_heads": heads, "head_dim": hidden // heads, **values}
    biases = {layer: bool(values.get(key, False)) for layer, key in _BIAS_KEYS[kind].items()}
    shape = ModelShape(
        vocab=_size(values, "vocab_size"),
        hidden=hidden,
        intermediate=_size(values, "intermediate_size"),
        layers=_size(values, "num_hidden_layers"),
        heads=heads,
        kv_heads=_size(values, "num_key_value_heads"),
        head_dim=_size(values, "head_dim"),
        qkv_bias=biases.get("qkv", False),
        out_bias=biases.get("out", False),
        mlp_bias=biases.get("mlp", False),
        qk_norm=kind in ("qwen3", "gemma3_text"),
        tied=bool(values.get("tie_word_embeddings", False)),
        norms=4 if kind in ("gemma2", "gemma3_text") else 2,
        fused=kind == "phi3",
    )
    return _with_sight(shape, values) if kind == MODEL_TYPE else shape


def _with_sight(shape: ModelShape, values: Mapping[str, Any]) -> ModelShape:
    """With an XComposer2's vision tower, projector and partial LoRA. Raises ValueError."""
    if other := other_version(values):
        raise ValueError(f"got {other}, known: InternLM-XComposer2 and XComposer2-VL")
    vision = vision_sizes(values)
    width, patch = _size(vision, "hidden_size"), _size(vision, "patch_size")
    image = {"img_size": values.get("img_size", vision.get("image_size")), "plora_rank": PLORA_RANK, **values}
    side, rank = _size(image, "img_size") // patch, _size(image, "plora_rank")
    inner, layers = _size(vision, "intermediate_size"), _size(vision, "num_hidden_layers")
    tower = tower_parameters(width, inner, layers, patch, side) + projector_parameters(width, shape.hidden)
    # the makers' matrices: query, key and value are one, gate and up are two
    widths = [(shape.hidden, shape.qkv_width), *(shape.linears[name] for name in _ALONE)]
    return replace(shape, seeing=tower + shape.layers * rank * sum(map(sum, widths)))


def _size(values: Mapping[str, Any], key: str) -> int:
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_SIZE:
        raise ValueError(f"got {key} {value!r}, known: a whole number from 1 to {LARGEST_SIZE}")
    return value


def new_shape(shape: Shape) -> ModelShape:
    """The shape of a model made from nothing (`model.init`)."""
    return ModelShape(
        vocab=shape.vocab_size,
        hidden=shape.hidden_size,
        intermediate=shape.intermediate_size,
        layers=shape.num_layers,
        heads=shape.num_heads,
        kv_heads=shape.num_kv_heads,
        head_dim=shape.hidden_size // shape.num_heads,
    )


def _llama(vocab: int, hidden: int, ffn: int, layers: int, heads: tuple[int, int], **more: Any) -> ModelShape:
    """`heads`: query and key/value heads."""
    head_dim = more.pop("head_dim", hidden // heads[0])
    return ModelShape(vocab, hidden, ffn, layers, *heads, head_dim, **more)


def _qwen3(vocab: int, hidden: int, ffn: int, layers: int, heads: tuple[int, int], **more: Any) -> ModelShape:
    return _llama(vocab, hidden, ffn, layers, heads, head_dim=128, qk_norm=True, **more)


def _gemma(vocab: int, hidden: int, ffn: int, layers: int, heads: tuple[int, int], **more: Any) -> ModelShape:
    return _llama(vocab, hidden, ffn, layers, heads, head_dim=256, tied=True, **more)


def _xcomposer2(img_size: int) -> ModelShape:
    """InternLM2-7B that sees images of so many pixels."""
    return _with_sight(_llama(92544, 4096, 14336, 32, (32, 8)), {"img_size": img_size})


_LLAMA3 = {"8B": _llama(128256, 4096, 14336, 32, (32, 8)), "70B": _llama(128256, 8192, 28672, 80, (64, 8))}
_MISTRAL_7B = _llama(32000, 4096, 14336, 32, (32, 8))
_QWEN2 = {
    "0.5B": _llama(151936, 896, 4864, 24, (14, 2), qkv_bias=True, tied=True),
    "1.5B": _llama(151936, 1536, 8960, 28, (12, 2), qkv_bias=True, tied=True),
    "7B": _llama(152064, 3584, 18944, 28, (28, 4), qkv_bias=True),
    "72B": _llama(152064, 8192, 29568, 80, (64, 8), qkv_bias=True),
}

# series -> size -> shape, as the config.json files on the hub state them
_SERIES: dict[str, dict[str, ModelShape]] = {
    "internlm": {
        "7b": _llama(103168, 4096, 11008, 32, (32, 32), qkv_bias=True, out_bias=True),
        "20b": _llama(103168, 5120, 13824, 60, (40, 40)),
    },
    "internlm2": {
        "1_8b": _llama(92544, 2048, 8192, 24, (16, 8)),
        "7b": _llama(92544, 4096, 14336, 32, (32, 8)),
        "20b": _llama(92544, 6144, 16384, 48, (48, 8)),
    },
    "internlm3": {"8b": _llama(128512, 4096, 10240, 48, (32, 2))},
    "xcomposer2": {"7b": _xcomposer2(224), "vl-7b": _xcomposer2(490)},
    "llama2": {
        "7b": _llama(32000, 4096, 11008, 32, (32, 32)),
        "13b": _llama(32000, 5120, 13824, 40, (40, 40)),
        "70b": _llama(32000, 8192, 28672, 80, (64, 8)),
    },
    "llama3": _LLAMA3,
    "llama3.2": {
        "1B": _llama(128256, 2048, 8192, 16, (32, 8), tied=True),
        "3B": _llama(128256, 3072, 8192, 28, (24, 8), tied=True),
    },
    "llama3.3": {"70B": _LLAMA3["70B"]},
    "mistral": {"v0.1": _MISTRAL_7B, "v0.3": _llama(32768, 4096, 14336, 32, (32, 8))},
    "mistral-instruct": {
        "v0.1": _MISTRAL_7B,
        "v0.2": _MISTRAL_7B,
        "v0.3": _llama(32768, 4096, 14336, 32, (32, 8)),
    },
    "qwen2": _QWEN2,
    "qwen2.5": {
        **_QWEN2,
        "3B": _llama(151936, 2048, 11008, 36, (16, 2), qkv_bias=True, tied=True),
        "14B": _llama(152064, 5120, 13824, 48, (40, 8), qkv_bias=True),
        "32B": _llama(152064, 5120, 27648, 64, (40, 8), qkv_bias=True),
    },
    "qwen3": {
        "0.6B": _qwen3(151936, 1024, 3072, 28, (16, 8), tied=True),
        "1.7B": _qwen3(151936, 2048, 6144, 28, (16, 8), tied=True),
        "4B": _qwen3(151936, 2560, 9728, 36, (32, 8), tied=True),
        "8B": _qwen3(151936, 4096, 12288, 36, (32, 8)),
        "14B": _qwen3(151936, 5120, 17408, 40, (40, 8)),
        "32B": _qwen3(151936, 5120, 25600, 64, (64, 8)),
    },
    "gemma": {
        "2b": _gemma(256000, 2048, 16384, 18, (8, 1)),
        "7b": _gemma(256000, 3072, 24576, 28, (16, 16)),
    },
    "gemma2": {
        "2b": _gemma(256000, 2304, 9216, 26, (8, 4), norms=4),
        "9b": _gemma(256000, 3584, 14336, 42, (16, 8), norms=4),
    },
    "gemma3": {"1b": _gemma(262144, 1152, 6912, 26, (4, 1), norms=4, qk_norm=True)},
    "phi3": {"mini-4k": _llama(32064, 3072, 8192, 32, (32, 32), fused=True)},
}

# form of the name on the Hugging Face hub -> series
_HUB_FORMS = {
    "internlm/internlm-{}": "internlm",
    "internlm/internlm-chat-{}": "internlm",
    "internlm/internlm2-{}": "internlm2",
    "internlm/internlm2-base-{}": "internlm2",
    "internlm/internlm2-chat-{}": "internlm2",
    "internlm/internlm2-chat-{}-sft": "internlm2",
    "internlm/internlm2_5-{}": "internlm2",
    "internlm/internlm2_5-{}-chat": "internlm2",
    "internlm/internlm2_5-{}-chat-1m": "internlm2",
    "internlm/internlm3-{}-instruct": "internlm3",
    "internlm/internlm-xcomposer2-{}": "xcomposer2",
    "meta-llama/Llama-2-{}-hf": "llama2",
    "meta-llama/Llama-2-{}-chat-hf": "llama2",
    "meta-llama/Meta-Llama-3-{}": "llama3",
    "meta-llama/Meta-Llama-3-{}-Instruct": "llama3",
    "meta-llama/Llama-3.1-{}": "llama3",
    "meta-llama/Llama-3.1-{}-Instruct": "llama3",
    "meta-llama/Llama-3.2-{}": "llama3.2",
    "meta-llama/Llama-3.2-{}-Instruct": "llama3.2",
    "meta-llama/Llama-3.3-{}-Instruct": "llama3.3",
    "mistralai/Mistral-7B-{}": "mistral",
    "mistralai/Mistral-7B-Instruct-{}": "mistral-instruct",
    "Qwen/Qwen2-{}": "qwen2",
    "Qwen/Qwen2-{}-Instruct": "qwen2",
    "Qwen/Qwen2.5-{}": "qwen2.5",
    "Qwen/Qwen2.5-{}-Instruct": "qwen2.5",
    "Qwen/Qwen3-{}": "qwen3",
    "Qwen/Qwen3-{}-Base": "qwen3",
    "google/gemma-{}": "gemma",
    "google/gemma-{}-it": "gemma",
    "google/gemma-2-{}": "gemma2",
    "google/gemma-2-{}-it": "gemma2",
    "google/gemma-3-{}-pt": "gemma3",
    "google/gemma-3-{}-it": "gemma3",
    "microsoft/Phi-3-{}-instruct": "phi3",
}

HUB_SHAPES: dict[str, ModelShape] = {
    form.format(size): shape for form, series in _HUB_FORMS.items() for size, shape in _SERIES[series].items()
}
