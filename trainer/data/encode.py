"""Segments -> (ids, labels). The whole conversation is tokenised at once and masked by character offsets, so the ids
are those that a server computes for the same text.

Two things make a conversation take the second path, which tokenises the stretches between special tokens one by one:
content that holds the text of a special token (it stays ordinary text: nobody can close a turn from inside a message),
and a token that would straddle the start of an answer (a prompt ends exactly there at inference).
"""

import json
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate
from typing import Any

from trainer.data.templates import Segment, Template, render_text
from trainer.errors import ConfigError

IGNORED = -100


@dataclass(frozen=True)
class Encoded:
    """One conversation. `labels` are ids where trained, else -100; `turn_ends` are lengths at which it may be cut;
    `origin` says where it was read."""

    text: str
    input_ids: list[int]
    labels: list[int]
    turn_ends: tuple[int, ...]
    escaped: bool = False
    origin: str = ""


class Encoder:
    """Encodes conversations of one template with one fast tokenizer."""

    def __init__(self, tokenizer: Any, template: Template) -> None:
        self.template = template
        self._fast = tokenizer.backend_tokenizer
        self._specials = _special_ids(tokenizer)
        missing = [token for token in template.required if token not in self._specials]
        if missing:
            raise ConfigError(
                f"model.chat_template: got {template.name}, but the tokenizer has no token {', '.join(missing)}",
                "choose the template that belongs to the model",
            )

    @cached_property
    def _plain(self) -> Any:
        return plain_tokenizer(self._fast)  # takes a second for 100,000 pieces, and few data sets need it

    def encode(self, conversations: Sequence[Sequence[Segment]]) -> list[Encoded]:
        """Ids and labels of rendered conversations, in their order."""
        texts = [render_text(segments) for segments in conversations]
        batch = self._fast.encode_batch(texts, add_special_tokens=False)
        return [
            self._one(text, segments, found) for text, segments, found in zip(texts, conversations, batch, strict=True)
        ]

    def prompt_ids(self, segments: Sequence[Segment]) -> list[int]:
        """Ids of a prompt for generation."""
        return self.encode([segments])[0].input_ids

    def _one(self, text: str, segments: Sequence[Segment], found: Any) -> Encoded:
        ends = list(accumulate(len(segment.text) for segment in segments))
        trained = bytearray(len(text) + 1)
        for segment, end in zip(segments, ends, strict=True):
            if segment.trained:
                trained[end - len(segment.text) : end] = b"\1" * len(segment.text)
        holds_special = any(not segment.control and self._has_special(segment.text) for segment in segments)
        if holds_special or _straddles(found.offsets, trained):
            return self._stretches(text, segments, holds_special)
        labels = [
            token if trained[start] else IGNORED for token, (start, _) in zip(found.ids, found.offsets, strict=True)
        ]
        starts = [start for start, _ in found.offsets]
        turns = tuple(
            _count_before(starts, end) for segment, end in zip(segments, ends, strict=True) if segment.ends_turn
        )
        return _unpredicted_start(Encoded(text, list(found.ids), labels, turns))

    def _stretches(self, text: str, segments: Sequence[Segment], escaped: bool) -> Encoded:
        ids: list[int] = []
        labels: list[int] = []
        turns = []
        for stretch, trained, control, ends_turn in _joined(segments):
            piece = [self._specials[stretch]] if control else self._plain.encode(stretch, add_special_tokens=False).ids
            ids += piece
            labels += piece if trained else [IGNORED] * len(piece)
            if ends_turn:
                turns.append(len(ids))
        return _unpredicted_start(Encoded(text, ids, labels, tuple(turns), escaped))

    def _has_special(self, text: str) -> bool:
        return any(token in text for token in self._specials) if any(sign in text for sign in "<[") else False


def plain_tokenizer(fast: Any) -> Any:
    """A copy of a `tokenizers.Tokenizer` to which special tokens are ordinary text."""
    from tokenizers import Tokenizer

    state = json.loads(fast.to_str())
    specials = {token["content"] for token in state["added_tokens"]}
    state["added_tokens"] = []
    state["post_processor"] = None
    state["pre_tokenizer"] = _without_splits(state["pre_tokenizer"])
    model = state["model"]
    # out of the vocabulary too: a text that is a whole piece is taken without merging
    model["vocab"] = {
        piece: number
        for piece, number in model["vocab"].items()
        if piece not in specials or piece == model["unk_token"]
    }
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


def _special_ids(tokenizer: Any) -> dict[str, int]:
    return {token.content: number for number, token in tokenizer.added_tokens_decoder.items()}


def _straddles(offsets: Sequence[tuple[int, int]], trained: bytearray) -> bool:
    """Whether a token begins before an answer and ends inside it."""
    return any(end - start > 1 and not trained[start] and trained[end - 1] for start, end in offsets)


def _joined(segments: Sequence[Segment]) -> list[tuple[str, bool, bool, bool]]:
    """(text, trained, control, ends_turn) with neighbouring text of one kind put together."""
    stretches: list[tuple[str, bool, bool, bool]] = []
    for segment in segments:
        last = stretches[-1] if stretches else None
        if last and not segment.control and not last[2] and last[1] == segment.trained:
            stretches[-1] = (last[0] + segment.text, last[1], False, segment.ends_turn)
        elif segment.text:
            stretches.append((segment.text, segment.trained, segment.control, segment.ends_turn))
    return stretches


def _count_before(starts: Sequence[int], position: int) -> int:
    return bisect_left(starts, position)


def _unpredicted_start(encoded: Encoded) -> Encoded:
    """The first token has nothing before it to be predicted from; in a packed row that would be another sample."""
    if encoded.labels:
        encoded.labels[0] = IGNORED
    return encoded
