"""A job's template against the tokenizer's own chat_template: servers that know only that one should see the tokens
that were trained."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal, NamedTuple

from trainer.data.encode import Encoder
from trainer.data.message import Conversation, RowError
from trainer.data.pieces import decode
from trainer.data.segment import Segment, render_text
from trainer.data.templates import find_template
from trainer.errors import ConfigError

AROUND_TOKENS = 12  # shown before the first difference, and of each side after it


class Chat(NamedTuple):
    """A conversation to compare, as the job's template renders it. `place` is file:line."""

    place: str
    conversation: Conversation
    segments: Sequence[Segment]


@dataclass(frozen=True)
class Side:
    """What one of the two has from the first difference on: at most AROUND_TOKENS ids, none at the end."""

    text: str
    ids: list[int]


@dataclass(frozen=True)
class Difference:
    """The first token, counted from 0, that is not the same. `before`: the text of the tokens in front of it.
    `same_text`: the two render the same text, of which other tokens are made."""

    place: str
    token: int
    before: str
    ours: Side
    theirs: Side
    same_text: bool


@dataclass(frozen=True)
class TemplateCheck:
    """`compared` conversations until the first difference. `why` none, or some, could not be compared."""

    template: str
    result: Literal["equal", "different", "not compared"]
    compared: int = 0
    why: str = ""
    difference: Difference | None = None


def check_template(name: str, encoder: Encoder, tokenizer: Any, chats: Sequence[Chat]) -> TemplateCheck:
    """Compare the ids of conversations under the template `name` of the encoder with the tokenizer's own."""
    if name == "tokenizer":
        return TemplateCheck(name, "not compared", why="the job's template is the tokenizer's own")
    if not chats:
        return TemplateCheck(name, "not compared", why="there is no conversation: documents have no template")
    try:
        theirs = Encoder(tokenizer, find_template("tokenizer", tokenizer))
    except ConfigError:
        return TemplateCheck(name, "not compared", why="the tokenizer has no chat_template")
    refused: list[str] = []
    for number, chat in enumerate(chats, 1):
        try:
            segments = theirs.template.render(chat.conversation.messages, chat.conversation.tools)
        except RowError as error:
            refused.append(f"{chat.place}: {error}")
            continue
        difference = _difference(encoder, theirs, tokenizer, chat, segments)
        if difference:
            return TemplateCheck(name, "different", number - len(refused), _words(refused), difference)
    compared = len(chats) - len(refused)
    return TemplateCheck(name, "equal" if compared else "not compared", compared, _words(refused))


def _words(refused: Sequence[str]) -> str:
    count = f" ({len(refused)} conversations, this is the first)" if len(refused) > 1 else ""
    return f"the tokenizer's template refuses {refused[0]}{count}" if refused else ""


def _difference(
    ours: Encoder, theirs: Encoder, tokenizer: Any, chat: Chat, segments: Sequence[Segment]
) -> Difference | None:
    mine, other = ours.prompt_ids(chat.segments), theirs.prompt_ids(segments)
    if mine == other:
        return None
    place = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(mine, other, strict=False)))
    start = max(0, place - AROUND_TOKENS)
    before = decode(tokenizer, mine[start:place])
    mine_side, other_side = (
        Side(decode(tokenizer, ids[start : place + AROUND_TOKENS])[len(before) :], ids[place : place + AROUND_TOKENS])
        for ids in (mine, other)
    )
    same_text = render_text(chat.segments) == render_text(segments)
    return Difference(chat.place, place, before, mine_side, other_side, same_text)
