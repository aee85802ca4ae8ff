"""Model families by the `model_type` of their config.json, one card each. Another package adds one through the
entry-point group `launch.families`: `name = "module:CARD"`."""

from collections.abc import Mapping
from functools import cache
from importlib.metadata import entry_points
from typing import Any

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


def card_of(kind: str) -> Card | None:
    """The card of a model_type; None for one that transformers alone knows."""
    return CARDS.get(kind) or _installed(kind)


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
    found = [entry.load() for entry in entry_points(group="launch.families", name=kind)]
    return found[0] if found else None
