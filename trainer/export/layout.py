"""In which names and shapes a checkpoint is written: Llama's, InternLM2's, or those it was read in. Pure.

Conversions are those of the family (trainer.families.registry). Each is asked what it does to row numbers instead of
weights, so that it need not be known here.
"""

from collections.abc import Callable, Mapping
from typing import Any, Literal

import torch

from trainer.errors import ConfigError
from trainer.export.weights import Rounded, Weight, gather
from trainer.families.card import Card
from trainer.families.internlm2 import from_llama, internlm2_config

Layout = Literal["auto", "llama", "internlm2"]
Weights = dict[str, Weight]
Adapt = Callable[[str, Weight], Weight]
LLAMA_FIELDS = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "tie_word_embeddings", "attention_bias", "mlp_bias", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
COMPUTED = "rotary_emb.inv_freq"  # a buffer in old checkpoints
LLAMA_CONFIGS = ("LlamaConfig", "InternLM3Config")  # InternLM3 has Llama's classes and weight names


def model_config(raw: dict[str, Any], family: Card | None) -> Any:
    """The config of the class that a checkpoint is loaded into, or None where only that class knows. `raw`: its
    config.json."""
    if family is not None:
        return family.config(raw)
    if raw.get("model_type") not in ("llama", "internlm3"):
        return None
    from transformers import AutoConfig

    return AutoConfig.for_model(**raw)


def is_llama(config: Any) -> bool:
    """Whether a config is of a model with Llama's classes and names."""
    return type(config).__name__ in LLAMA_CONFIGS


def choose(asked: Layout, raw: dict[str, Any], config: Any) -> Literal["own", "llama", "internlm2"]:
    """The layout to write. `config`: what model_config gave. Raises ConfigError for one that cannot be."""
    kind = str(raw.get("model_type"))
    if asked == kind or (asked == "auto" and (kind == "llama" or not is_llama(config))):
        return "own"
    if asked == "auto":
        return "llama"
    if not is_llama(config):
        raise ConfigError(f"--layout: got {asked}, allowed for a model of type {kind}: auto (its own layout)")
    if asked == "internlm2":
        _check_internlm2(config)
    return asked


def written(layout: str, stored: Weights, family: Card | None, config: Any, adapt: Adapt) -> Weights:
    """The weights of the new checkpoint. `adapt`: the weight of a name in the model -> the same with its adapter.
    Raises ConfigError."""
    stored = {name: weight for name, weight in stored.items() if not name.endswith(COMPUTED)}
    llama = {}
    if is_llama(config):
        llama = {new: part for item in stored.items() for new, part in _converted(*item, family, config)}
        check_llama(llama, config)
    if layout == "own":
        return {name: _in_place(name, weight, family, config, adapt) for name, weight in stored.items()}
    llama = {name: Rounded(adapt(name, weight)) for name, weight in llama.items()}
    return llama if layout == "llama" else _fused(llama, config)


def written_config(layout: str, raw: dict[str, Any], config: Any) -> dict[str, Any]:
    """The new config.json. Remote code (auto_map) is left out: it is not ours to ship."""
    if layout == "internlm2":
        return {**internlm2_config(config), "torch_dtype": "bfloat16"}
    if layout == "own":
        kept = {key: value for key, value in raw.items() if key not in ("auto_map", "_name_or_path")}
        return {**kept, "dtype": "bfloat16", "torch_dtype": "bfloat16"}
    rope = dict(config.rope_parameters)
    # as transformers 5 writes it, and in the form of before, which other readers know
    older = {key: value for key, value in rope.items() if key != "rope_theta"}
    scaling = {} if rope["rope_type"] == "default" else {"rope_scaling": {**older, "type": rope["rope_type"]}}
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{key: getattr(config, key) for key in LLAMA_FIELDS},
        "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],
        **scaling,
        "use_cache": True,
        "dtype": "bfloat16",
        "torch_dtype": "bfloat16",
    }


def check_llama(weights: Mapping[str, Weight], config: Any) -> None:
    """Raise ConfigError unless these are all weights of a Llama of this config, in their shapes."""
    expected = _llama_shapes(config)
    for name, weight in weights.items():
        if name not in expected:
            raise ConfigError(f"{_file(weight)}: got weight {name}, allowed: the weights of LlamaForCausalLM")
        if weight.shape != expected[name]:
            got, allowed = list(weight.shape), list(expected[name])
            raise ConfigError(f"{_file(weight)}: weight {name}: got shape {got}, allowed: {allowed} (config.json)")
    missing = [name for name in expected if name not in weights]
    if missing and not (config.tie_word_embeddings and missing == ["lm_head.weight"]):
        raise ConfigError(f"the base lacks {len(missing)} weights, the first is {missing[0]}", "get its missing files")


def _llama_shapes(config: Any) -> dict[str, tuple[int, ...]]:
    width, inner = config.hidden_size, config.intermediate_size
    head = config.head_dim or width // config.num_attention_heads
    heads, kv = config.num_attention_heads * head, config.num_key_value_heads * head
    attention = {"q_proj": (heads, width), "k_proj": (kv, width), "v_proj": (kv, width), "o_proj": (width, heads)}
    mlp = {"gate_proj": (inner, width), "up_proj": (inner, width), "down_proj": (width, inner)}
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config.vocab_size, width)}
    for layer in range(config.num_hidden_layers):
        for block, matrices, bias in (("self_attn", attention, config.attention_bias), ("mlp", mlp, config.mlp_bias)):
            for matrix, shape in matrices.items():
                name = f"model.layers.{layer}.{block}.{matrix}"
                shapes[name + ".weight"] = shape
                if bias:
                    shapes[name + ".bias"] = shape[:1]
        for norm in ("input_layernorm", "post_attention_layernorm"):
            shapes[f"model.layers.{layer}.{norm}.weight"] = (width,)
    return {**shapes, "model.norm.weight": (width,), "lm_head.weight": (config.vocab_size, width)}


def _moved(name: str, weight: Weight, family: Card | None, config: Any) -> list[tuple[str, torch.Tensor]]:
    """The model's weights that a stored one becomes, each as the numbers of its rows there: int64 [rows]. None where
    it becomes something else than its own rows: a buffer that is left out, positions that are interpolated."""
    numbers = torch.arange(weight.shape[0])
    if family is None:
        return [(name, numbers)]
    try:
        found = family.convert(name, numbers.view(-1, *[1] * (len(weight.shape) - 1)), config)
        moved = [(new, part.flatten()) for new, part in found]
    except RuntimeError:  # of torch: no such arithmetic for whole numbers, or rows that cannot be grouped so
        return []
    rows = [part for _, part in moved]
    return moved if rows and torch.equal(torch.cat(rows).sort().values, numbers) else []


def _converted(name: str, weight: Weight, family: Card | None, config: Any) -> list[tuple[str, Weight]]:
    moved = _moved(name, weight, family, config)
    if not moved:
        got = list(weight.shape)
        raise ConfigError(f"{_file(weight)}: weight {name}: got shape {got}, which does not fit config.json")
    return [(new, gather([weight], torch.zeros_like(rows), rows)) for new, rows in moved]


def _in_place(name: str, weight: Weight, family: Card | None, config: Any, adapt: Adapt) -> Weight:
    """A stored weight, each of its rows as the adapter makes it under the name that the model has for it."""
    moved = _moved(name, weight, family, config)
    if not moved:  # nothing that an adapter can be on
        return Rounded(weight)
    parts = [Rounded(adapt(new, part)) for new, part in _converted(name, weight, family, config)]
    rows = torch.cat([part for _, part in moved])
    order = rows.argsort()
    owners = torch.cat([torch.full_like(part, number) for number, (_, part) in enumerate(moved)])
    places = torch.cat([torch.arange(len(part)) for _, part in moved])
    return gather(parts, owners[order], places[order])


def _fused(llama: Weights, config: Any) -> Weights:
    """Llama's weights in InternLM2's layout."""
    names, numbers, first = list(llama), {}, 0
    for name, weight in llama.items():
        rows = torch.arange(first, first + weight.shape[0])
        numbers[name] = rows.view(-1, *[1] * (len(weight.shape) - 1))
        first += weight.shape[0]
    starts = torch.tensor([int(rows.flatten()[0]) for rows in numbers.values()])
    fused = {}
    for name, rows in from_llama(numbers, config).items():
        flat = rows.flatten()
        owners = torch.searchsorted(starts, flat, right=True) - 1
        used = torch.unique(owners).tolist()
        sources = [llama[names[number]] for number in used]
        local = torch.searchsorted(torch.tensor(used), owners)
        fused[name] = gather(sources, local, flat - starts[owners])
    return fused


def _check_internlm2(config: Any) -> None:
    """InternLM2's config.json can say less than Llama's."""
    rope = config.rope_parameters["rope_type"]
    width = (config.head_dim or 0) * config.num_attention_heads
    problems = [
        *(["biases in the feed-forward layers"] if config.mlp_bias else []),
        *([f"a rope of type {rope}"] if rope not in ("default", "dynamic", "linear") else []),
        *(["heads of another width than hidden_size / heads"] if width not in (0, config.hidden_size) else []),
    ]
    if problems:
        raise ConfigError(f"--layout: got internlm2, but this model has {' and '.join(problems)}", "use --layout llama")


def _file(weight: Any) -> str:
    """Where a weight was read, for messages."""
    while not hasattr(weight, "path"):
        runs = getattr(weight, "runs", None)
        if not runs:
            return "the base"
        weight = runs[0].weight
    return str(weight.path)
