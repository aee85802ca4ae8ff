"""Model families by the `model_type` of their config.json, one card each. Another package adds one through the
entry-point group `launch.families`: `name = "module:CARD"`."""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

from trainer.errors import ConfigError
from trainer.families import (
    gemma,
    gemma2,
    gemma3,
    internlm,
    internlm2,
    internlm3,
    llama,
    mistral,
    phi3,
    qwen2,
    qwen3,
    xcomposer2,
)
from trainer.families.card import Card

_OWN = (internlm, internlm2, internlm3, xcomposer2, llama, mistral, qwen2, qwen3, gemma, gemma2, gemma3, phi3)
CARDS: dict[str, Card] = {module.CARD.name: module.CARD for module in _OWN}


class CardError(ConfigError, ValueError):
    """A package names a card that cannot be used."""


def card_of(kind: str) -> Card | None:
    """The card of a model_type; None for one that transformers alone knows. Raises CardError."""
    return CARDS.get(kind) or _installed(kind)


def chat_card_of(kind: str) -> Card | None:
    """The card of the family whose chat models those of a model_type are like: its own, or its kin's. Raises
    CardError."""
    return card_of(kind) or next((card for card in CARDS.values() if kind in card.kin), None)


def find_family(raw: Mapping[str, Any]) -> Card | None:
    """The family of a config.json. None: transformers reads it, as it does every quantised checkpoint."""
    if raw.get("quantization_config"):
        return None
    kind = str(raw.get("model_type"))
    if kind == "internlm" and "InternLM2ForCausalLM" in (raw.get("architectures") or []):
        kind = "internlm2"  # early InternLM2 checkpoints call themselves so
    return card_of(kind)


@cache
def _installed(kind: str) -> Card | None:
    entries = sorted(set(entry_points(group="launch.families", name=kind)), key=lambda entry: entry.value)
    if not entries:
        return None
    where = f"model_type {kind}: {' and '.join(entry.value for entry in entries)} in launch.families"
    if len(entries) > 1:
        raise CardError(f"{where}: got several, allowed: one", "uninstall all packages but one that name this family")
    try:
        card = entries[0].load()
    except Exception as error:  # whatever another package's code raises while it is imported
        raise CardError(f"{where}: cannot be loaded: {type(error).__name__}: {error}",
                        "fix or uninstall its package") from error
    if not isinstance(card, Card) or card.name != kind:
        raise CardError(f"{where}: got {type(card).__name__}, allowed: a Card whose name is {kind}", "fix its package")
    return card
