"""InternLM-XComposer2: InternLM2 that sees images (its model: trainer.families.xcomposer2_model; its sizes:
xcomposer2_shape)."""

from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from trainer.families import internlm2
from trainer.families.card import Card, Layout, NewModels
from trainer.families.shape import ModelShape, config_fields, llama_shape, on_hub, size_of, tiny
from trainer.families.xcomposer2_shape import (
    MODEL_TYPE,
    PLORA_RANK,
    other_version,
    projector_parameters,
    tower_parameters,
    vision_sizes,
)

if TYPE_CHECKING:
    import torch

_ALONE = ("o_proj", "gate_proj", "up_proj", "down_proj")


def with_sight(shape: ModelShape, values: Mapping[str, Any]) -> ModelShape:
    """With an XComposer2's vision tower, projector and partial LoRA. Raises ValueError."""
    if other := other_version(values):
        raise ValueError(f"got {other}, known: InternLM-XComposer2 and XComposer2-VL")
    vision = vision_sizes(values)
    width, patch = size_of(vision, "hidden_size"), size_of(vision, "patch_size")
    image = {"img_size": values.get("img_size", vision.get("image_size")), "plora_rank": PLORA_RANK, **values}
    side, rank = size_of(image, "img_size") // patch, size_of(image, "plora_rank")
    inner, layers = size_of(vision, "intermediate_size"), size_of(vision, "num_hidden_layers")
    tower = tower_parameters(width, inner, layers, patch, side) + projector_parameters(width, shape.hidden)
    # the makers' matrices: query, key and value are one, gate and up are two
    widths = [(shape.hidden, shape.qkv_width), *(shape.linears[name] for name in _ALONE)]
    return replace(shape, seeing=tower + shape.layers * rank * sum(map(sum, widths)))


def _config(raw: dict[str, Any]) -> Any:
    from trainer.families import xcomposer2_model

    return xcomposer2_model.llama_config(raw)


def _model(config: Any) -> Any:
    from trainer.families import xcomposer2_model

    return xcomposer2_model.XComposer2ForCausalLM(config)


def _convert(name: str, tensor: "torch.Tensor", config: Any) -> list[tuple[str, "torch.Tensor"]]:
    from trainer.families import xcomposer2_model

    return xcomposer2_model.convert(name, tensor, config)


def _to_original(weights: dict[str, "torch.Tensor"], config: Any) -> dict[str, "torch.Tensor"]:
    from trainer.families import xcomposer2_layout

    return xcomposer2_layout.to_original(weights, config)


def _unused(config: Any) -> dict[str, Any]:
    from trainer.families import xcomposer2_layout

    return xcomposer2_layout.unused_weights(config)


_BASE = llama_shape(92544, 4096, 14336, 32, (32, 8))
_SIZES = {"7b": with_sight(_BASE, {"img_size": 224}), "vl-7b": with_sight(_BASE, {"img_size": 490})}
_TINY_VIT = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}

CARD = Card(
    MODEL_TYPE, _config, _model, _convert, Layout(_to_original, _unused),
    biases={"qkv": "bias", "out": "bias"},
    more_shape=with_sight,
    hub=on_hub(("internlm/internlm-xcomposer2-{}",), _SIZES),
    template="internlm2", slots=internlm2.SLOTS, slots_vocab=92544,
    new=NewModels(
        "InternLMXComposer2ForCausalLM",
        {**internlm2.NEW_FIELDS, "model_type": "internlmxcomposer2", "max_length": 4096},
        {"tiny": tiny(img_size=28, plora_rank=8, vision_config=_TINY_VIT),
         "7b": config_fields(_SIZES["7b"], img_size=224), "vl_7b": config_fields(_SIZES["vl-7b"], img_size=490)},
        tokens=tuple(internlm2.SLOTS.values()), has_pieces=True,
    ),
)  # fmt: skip
