"""A job's template against the tokenizer's own chat_template: servers that know only that one should see the tokens
that were trained. Their side is made as they make it: Jinja to text, text to ids, special tokens as they come."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile
from typing import Any, Literal, NamedTuple

from jinja2.exceptions import TemplateError

from trainer.data.encode import Encoded, Encoder
from trainer.data.message import Conversation, RowError
from trainer.data.own_template import JINJA_BUGS, openai_messages
from trainer.data.pieces import decode
from trainer.data.segment import Segment

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
    if not tokenizer.chat_template:
        return TemplateCheck(name, "not compared", why="the tokenizer has no chat_template")
    refused: list[str] = []
    compared = 0
    for chat, encoded in zip(chats, encoder.encode([chat.segments for chat in chats]), strict=True):
        if encoded.escaped:  # a server may take that text for the token: counted by the report
            continue
        try:
            text, ids = _served(tokenizer, chat.conversation)
        except RowError as error:
            refused.append(f"{chat.place}: {error}")
            continue
        compared += 1
        if ids != encoded.ids:
            difference = _difference(tokenizer, chat.place, encoded, text, ids)
            return TemplateCheck(name, "different", compared, _words(refused), difference)
    return TemplateCheck(name, "equal" if compared else "not compared", compared, _words(refused))


def _served(tokenizer: Any, conversation: Conversation) -> tuple[str, list[int]]:
    """Text and ids of a conversation as a server makes them. Raises RowError when the Jinja refuses it."""
    tools = [{"type": "function", "function": tool} for tool in conversation.tools] or None
    try:
        text = tokenizer.apply_chat_template(openai_messages(conversation.messages), tools=tools, tokenize=False)
    except (TemplateError, *JINJA_BUGS) as error:
        raise RowError("messages", str(error) or type(error).__name__, "what the tokenizer's template takes") from error
    return text, tokenizer(text, add_special_tokens=False).input_ids


def _words(refused: Sequence[str]) -> str:
    count = f" ({len(refused)} conversations, this is the first)" if len(refused) > 1 else ""
    return f"the tokenizer's template refuses {refused[0]}{count}" if refused else ""


def _difference(tokenizer: Any, where: str, encoded: Encoded, text: str, ids: list[int]) -> Difference:
    pairs = zip(encoded.ids, ids, strict=False)
    place = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
    start = max(0, place - AROUND_TOKENS)
    before = decode(tokenizer, ids[start:place])
    ours, theirs = (
        Side(decode(tokenizer, side[start : place + AROUND_TOKENS])[len(before) :], side[place : place + AROUND_TOKENS])
        for side in (encoded.ids, ids)
    )
    return Difference(where, place, before, ours, theirs, encoded.text == text)
