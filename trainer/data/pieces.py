"""A sample cut where training begins and ends and around special tokens, to be shown to people."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from trainer.data.control import shown_ids
from trainer.data.encode import IGNORED
from trainer.data.segment import Segment


@dataclass(frozen=True)
class Piece:
    """Text of one kind. `special`: of tokens that are shown apart from ordinary text."""

    text: str
    trained: bool
    special: bool


def decode(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of ids, special tokens included."""
    return str(tokenizer.backend_tokenizer.decode(ids, skip_special_tokens=False))


def segment_pieces(segments: Sequence[Segment]) -> list[Piece]:
    """As the template marks it."""
    return _joined((segment.text, segment.trained, segment.control) for segment in segments if segment.text)


def token_pieces(tokenizer: Any, ids: Sequence[int], labels: Sequence[int]) -> list[Piece]:
    """As the tokens are, which is what the model is trained on."""
    specials = set(shown_ids(tokenizer).values())
    kinds = [(label != IGNORED, token in specials) for token, label in zip(ids, labels, strict=True)]
    pieces = []
    before = start = 0
    for (trained, special), run in groupby(kinds):
        end = start + len(list(run))
        # a decoder drops blanks at the start of a text, so it gets the run before, too
        known = decode(tokenizer, ids[before:start])
        pieces.append((decode(tokenizer, ids[before:end])[len(known) :], trained, special))
        before, start = start, end
    return _joined(pieces)


def _joined(parts: Iterable[tuple[str, bool, bool]]) -> list[Piece]:
    return [
        Piece("".join(text for text, _, _ in run), trained, special)
        for (trained, special), run in groupby(parts, key=lambda part: part[1:])
    ]
