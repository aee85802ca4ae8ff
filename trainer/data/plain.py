"""A tokenizer to which control tokens are ordinary text. Pure."""

import json
from collections.abc import Collection, Iterator
from functools import cached_property
from typing import Any, Literal

from tokenizers import Tokenizer

UNKNOWN = "\0unknown\0"
# settings of steps that put a blank in front of a text -> the value with which they do not: those of Metaspace, of
# Prepend, which older Llama tokenizers have instead, and of ByteLevel
PREFIXES = {"prepend_scheme": "never", "prepend": "", "add_prefix_space": False}


class PlainTokenizer:
    """A copy of a `tokenizers.Tokenizer` to which the added tokens `controls` are ordinary text; the others stay what
    they are."""

    def __init__(self, fast: Any, controls: Collection[str]) -> None:
        self._state = _without(json.loads(fast.to_str()), controls)
        self._tokenizer = Tokenizer.from_str(json.dumps(self._state))
        self._prefixes = {step.get("prepend_scheme", "always") for step in _prefixing(self._state)}

    def ids(self, text: str, behind: Literal["nothing", "token", "text"]) -> list[int]:
        """The ids of a part of a text. SentencePiece's tokenizers put a blank in front of a text, and some of them
        behind every token, but none between text and text."""
        prefixed = behind == "nothing" or (behind == "token" and "always" in self._prefixes)
        tokenizer = self._tokenizer if prefixed or not self._prefixes else self._unprefixed
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    @cached_property
    def _unprefixed(self) -> Any:
        state = json.loads(json.dumps(self._state))
        for step in _prefixing(state):
            step |= {key: value for key, value in PREFIXES.items() if key in step}
        return Tokenizer.from_str(json.dumps(state))


def _prefixing(state: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """The steps that put a blank in front of a text."""
    for part, inner in (("normalizer", "normalizers"), ("pre_tokenizer", "pretokenizers")):
        first = state[part] or {}
        for step in first.get(inner, [first]):
            if any(step.get(key, value) != value for key, value in PREFIXES.items()):
                yield step


def _without(state: dict[str, Any], controls: Collection[str]) -> dict[str, Any]:
    """A tokenizer's state without the tokens `controls`."""
    state["added_tokens"] = kept = [token for token in state["added_tokens"] if token["content"] not in controls]
    state["post_processor"] = None
    model = state["model"]
    # out of the vocabulary too: a text that is a whole piece is taken without merging. The model needs the one for
    # what it does not know, which gets a name that no text has. An added token that the vocabulary does not have would
    # be numbered anew.
    vocabulary, unknown = model["vocab"], model["unk_token"]
    model["vocab"] = {piece: number for piece, number in vocabulary.items() if piece not in controls}
    model["vocab"] |= {token["content"]: token["id"] for token in kept}
    if unknown in controls:
        model["vocab"][UNKNOWN], model["unk_token"] = vocabulary[unknown], UNKNOWN
    if "merges" in model:
        model["merges"] = [
            pair
            for pair in model["merges"]
            if "".join(pair if isinstance(pair, list) else pair.split(" ")) not in controls
        ]
    return state
