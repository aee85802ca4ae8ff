"""Which of a tokenizer's added tokens are control tokens: no text of a message ever becomes one. Pure.

Makers add ordinary text to their tokenizers, too: line ends, runs of blanks and HTML tags (Gemma), and the marks that
a model itself writes around thoughts and calls (Qwen, DeepSeek). None of these ends a turn, and a server makes tokens
of them wherever they stand, so training does the same.
"""

from collections.abc import Collection
from typing import Any

# Written by models in their answers, and by their makers' templates in system and user turns. Some makers call them
# special, which only keeps them out of what readers see.
MODEL_MARKS = frozenset(f"<{end}{name}>" for name in ("think", "tool_call", "tool_response") for end in ("", "/"))


def control_ids(tokenizer: Any, written: Collection[str] = ()) -> dict[str, int]:
    """Text -> id of the control tokens: those that the maker calls special, and the added tokens among `written`, which
    a template writes around messages or stops at (DeepSeek does not call its roles special)."""
    named = set(tokenizer.all_special_tokens)
    return {
        token.content: number
        for number, token in tokenizer.added_tokens_decoder.items()
        if token.content in written or ((token.special or token.content in named) and token.content not in MODEL_MARKS)
    }


def shown_ids(tokenizer: Any) -> dict[str, int]:
    """Text -> id of the tokens that people and readers of calls see apart from text: special ones and the model's own
    marks."""
    added = tokenizer.added_tokens_decoder.items()
    return {token.content: number for number, token in added if token.special or token.content in MODEL_MARKS}
