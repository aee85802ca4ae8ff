"""Ids -> text while a model still writes: no half characters, no lost blanks, special tokens apart."""

from collections.abc import Iterable, Sequence
from typing import Any

from trainer.data.control import shown_ids
from trainer.data.pieces import decode
from trainer.data.segment import Segment

CONTEXT = 8  # ids in front of the first one: a decoder drops the blank at the start of a text
INCOMPLETE = "\ufffd"  # what decoders write for bytes that are no character, or not yet


class TextStream:
    """The text of ids that come one after the other behind `before`. Special tokens and the model's own marks come
    out as segments of their own (`control`); a text that only looks like one, or another added token, does not."""

    def __init__(self, tokenizer: Any, before: Sequence[int]) -> None:
        self._tokenizer = tokenizer
        self._names = {number: token for token, number in shown_ids(tokenizer).items()}
        self._window = list(before[-CONTEXT:])
        self._known = len(self._window)  # ids of the window whose text is out

    def put(self, number: int) -> list[Segment]:
        """What is complete with this id."""
        name = self._names.get(number)
        if name is not None:
            segments = [*self.end(), Segment(name, control=True)]
            self._window, self._known = [number], 1
            return segments
        self._window.append(number)
        text = self._new_text()
        return [] if text.endswith(INCOMPLETE) else self._out(text)

    def end(self) -> list[Segment]:
        """What waited for more bytes."""
        return self._out(self._new_text())

    def _new_text(self) -> str:
        return decode(self._tokenizer, self._window)[len(decode(self._tokenizer, self._window[: self._known])) :]

    def _out(self, text: str) -> list[Segment]:
        self._window = self._window[self._known :] or self._window
        self._known = len(self._window)
        return [Segment(text)] if text else []


def read_segments(tokenizer: Any, before: Sequence[int], ids: Iterable[int]) -> list[Segment]:
    """The whole text of `ids` behind `before`."""
    stream = TextStream(tokenizer, before)
    return [segment for number in ids for segment in stream.put(number)] + stream.end()
