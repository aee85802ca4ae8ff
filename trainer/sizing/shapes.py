"""The size of a model: from its config.json, from its name on the hub, or from a job's own `model.shape`. Imports no
torch and reads no file."""

from collections.abc import Mapping
from typing import Any

from trainer.config.job import Shape
from trainer.families.registry import CARDS, card_of
from trainer.families.shape import ModelShape, size_of
from trainer.families.xcomposer2_shape import MODEL_TYPE, is_xcomposer
from trainer.sizing.experts import expert_count

HUB_SHAPES: dict[str, ModelShape] = {name: shape for card in CARDS.values() for name, shape in card.hub.items()}


def shape_of_config(raw: Mapping[str, Any]) -> ModelShape:
    """The shape that a config.json describes. Raises ValueError with what is missing or not known."""
    kind = MODEL_TYPE if is_xcomposer(raw) else raw.get("model_type")
    if experts := expert_count(raw):
        raise ValueError(f"got a mixture of {experts} experts, known: dense models")
    card = card_of(str(kind))
    if card is None:
        raise ValueError(f"got model_type {kind!r}, known: {', '.join(CARDS)}")
    values = {**card.defaults, **{key: value for key, value in raw.items() if value is not None}}
    hidden, heads = size_of(values, "hidden_size"), size_of(values, "num_attention_heads")
    values = {"num_key_value_heads": heads, "head_dim": hidden // heads, **values}
    biases = {f"{layer}_bias": bool(values.get(key, False)) for layer, key in card.biases.items()}
    shape = ModelShape(
        vocab=size_of(values, "vocab_size"),
        hidden=hidden,
        intermediate=size_of(values, "intermediate_size"),
        layers=size_of(values, "num_hidden_layers"),
        heads=heads,
        kv_heads=size_of(values, "num_key_value_heads"),
        head_dim=size_of(values, "head_dim"),
        tied=bool(values.get("tie_word_embeddings", False)),
        **biases,
        **card.traits,
    )
    return card.more_shape(shape, values) if card.more_shape else shape


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
