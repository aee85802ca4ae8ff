"""Sizes that `new-model` makes: config.json of each family as its makers write it, and a tiny one for tests."""

from typing import Any

from trainer.errors import ConfigError
from trainer.families.card import Card
from trainer.families.registry import CARDS, card_of


def find_size(family: str, size: str) -> tuple[Card, dict[str, Any]]:
    """A family's card and the config.json of one size. Raises ConfigError."""
    card = card_of(family)
    if card is None or card.new is None:
        raise ConfigError(f"--family: got {family}, allowed: {', '.join(CARDS)}")
    if size not in card.new.sizes:
        raise ConfigError(f"--size: got {size}, allowed for {family}: {', '.join(card.new.sizes)}")
    raw = {"architectures": [card.new.architecture], "model_type": family, **card.new.shared, **card.new.sizes[size]}
    return card, {**raw, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 2, "dtype": "bfloat16"}


def template_of(card: Card) -> str:
    """The chat template of a family's new models."""
    return str(card.template or card.guess)
