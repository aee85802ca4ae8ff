"""The first rows of a data set as every stage of the pipeline leaves them, kept while the pipeline runs."""

import json
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TextIO

from trainer.data.encode import Encoded
from trainer.data.message import Conversation, Message
from trainer.data.pieces import Piece, segment_pieces, token_pieces
from trainer.data.segment import Segment, render_text
from trainer.data.sources import Place
from trainer.data.template_check import Chat

COMPARED_CHATS = 100  # with the tokenizer's own template


@dataclass(frozen=True)
class Look:
    """How much to keep: the first `rows` of every stage, the first `dump` samples as JSON lines."""

    rows: int = 1
    dump: int = 0


@dataclass(frozen=True)
class SampleFound:
    """A sample as it is trained on. labels: -100 where not trained."""

    input_ids: list[int]
    labels: list[int]
    pieces: list[Piece]


@dataclass(frozen=True)
class RowFound:
    """One row after every stage. `samples`: None when it has nothing to train on, empty when the length policy left
    it out, several for a document in pieces."""

    place: str
    row: dict[str, Any]
    messages: list[dict[str, Any]]
    tools: list[dict[str, Any]]
    images: list[str]
    text: str
    pieces: list[Piece]
    samples: list[SampleFound] | None


class _Row:
    """A row on its way through the stages."""

    def __init__(self, place: Place, row: dict[str, Any]) -> None:
        self.place, self.row = place, row
        self.conversation = Conversation([])
        self.segments: list[Segment] = []
        self.samples: list[Encoded] | None = None

    def found(self, tokenizer: Any) -> RowFound:
        return RowFound(
            place=_written(self.place),
            row=_plain(self.row),
            messages=[_message(message) for message in self.conversation.messages],
            tools=_plain(self.conversation.tools),
            images=list(self.conversation.images),
            text=render_text(self.segments),
            pieces=segment_pieces(self.segments),
            samples=None if self.samples is None else [_sample(tokenizer, sample) for sample in self.samples],
        )


class FirstRows:
    """Keeps what is looked at of what the stages tell of each row: read, map and template of one row after the other,
    encode a batch later."""

    def __init__(self, look: Look, dumped: TextIO, tell: Callable[[], None]) -> None:
        self.look, self.dumped, self.left, self.tell = look, dumped, look.dump, tell
        self.rows: list[_Row] = []
        self.chats: list[Chat] = []
        self._encoded = 0
        self._last = _Row(Place("", 0), {})

    def see(self, stage: str, place: Place, value: Any) -> None:
        """The watch of a Pipeline."""
        if stage == "encode":
            self._encode(place, value)
        elif stage == "read":
            self.tell()
            self._last = _Row(place, value)
            if len(self.rows) < self.look.rows:
                self.rows.append(self._last)
        elif stage == "map":
            self._last.conversation = value
        else:
            self._last.segments = value
            conversation = self._last.conversation
            if len(self.chats) < COMPARED_CHATS and conversation.messages[0].role != "text":
                self.chats.append(Chat(_written(place), conversation, value))

    def found(self, tokenizer: Any) -> list[RowFound]:
        """The first rows, whole."""
        return [row.found(tokenizer) for row in self.rows]

    def _encode(self, place: Place, kept: list[Encoded]) -> None:
        # rows come in their order, and those without anything to train on do not come
        waits = next((at for at in range(self._encoded, len(self.rows)) if self.rows[at].place == place), None)
        if waits is not None:
            self.rows[waits].samples = kept
            self._encoded = waits + 1
        for sample in kept[: self.left]:
            line = {"text": sample.text, "input_ids": sample.ids, "labels": sample.labels}
            self.dumped.write(json.dumps(line, ensure_ascii=False) + "\n")
            self.left -= 1


def _written(place: Place) -> str:
    return f"{place.file}:{place.line}"


def _message(message: Message) -> dict[str, Any]:
    """Without what is as usual."""
    shown: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.calls:
        shown["calls"] = [_plain(call._asdict()) for call in message.calls]
    shown |= {name: _plain(value) for name, value in message.extra.items() if name not in shown}
    if message.channel:
        shown["channel"] = message.channel
    if message.role == "assistant" and not message.loss:
        shown["loss"] = False
    return shown


def _sample(tokenizer: Any, sample: Encoded) -> SampleFound:
    pieces, place = [], 0
    for start, end, _ in sample.images:
        pieces += token_pieces(tokenizer, sample.ids[place:start], sample.labels[place:start])
        pieces.append(Piece(f"[image: {end - start} tokens]", trained=False, special=True))
        place = end
    pieces += token_pieces(tokenizer, sample.ids[place:], sample.labels[place:])
    return SampleFound(sample.ids, sample.labels, pieces)


def _plain(value: Any) -> Any:
    """A row's value as JSON can hold it: numbers that are none and what Arrow has beyond JSON become text."""
    if isinstance(value, dict):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    if isinstance(value, bytes):
        return f"({len(value)} bytes)"
    known = value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value))
    return value if known else str(value)
