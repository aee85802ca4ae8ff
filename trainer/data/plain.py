"""A tokenizer to which special tokens are ordinary text. Pure."""

import json
from typing import Any

from tokenizers import Tokenizer

UNKNOWN = "\0unknown\0"


def plain_tokenizer(fast: Any) -> Any:
    """A copy of a `tokenizers.Tokenizer` to which special tokens are ordinary text."""
    state = json.loads(fast.to_str())
    specials = {token["content"] for token in state["added_tokens"]}
    state["added_tokens"] = []
    state["post_processor"] = None
    state["pre_tokenizer"] = _without_splits(state["pre_tokenizer"])
    model = state["model"]
    # out of the vocabulary too: a text that is a whole piece is taken without merging. The model needs the one for
    # what it does not know, which gets a name that no text has.
    vocabulary, unknown = model["vocab"], model["unk_token"]
    model["vocab"] = {piece: number for piece, number in vocabulary.items() if piece not in specials}
    if unknown in specials:
        model["vocab"][UNKNOWN], model["unk_token"] = vocabulary[unknown], UNKNOWN
    if "merges" in model:
        model["merges"] = [
            pair
            for pair in model["merges"]
            if "".join(pair if isinstance(pair, list) else pair.split(" ")) not in specials
        ]
    return Tokenizer.from_str(json.dumps(state))


def _without_splits(pre_tokenizer: Any) -> Any:
    """Leave out the step that keeps SentencePiece's user-defined symbols whole."""
    if not pre_tokenizer:
        return pre_tokenizer
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    kept = [
        step
        for step in steps
        if not (step["type"] == "Split" and "Regex" in step["pattern"] and "\\]|\\[" in step["pattern"]["Regex"])
    ]
    kept = [step for step in kept if not (step["type"] == "Split" and ">|<" in str(step["pattern"].get("Regex", "")))]
    return {"type": "Sequence", "pretokenizers": kept} if kept else None
