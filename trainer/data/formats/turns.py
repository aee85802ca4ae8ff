"""Turns of a conversation, the same for every chat format: their order, whether each is trained, and what else a row
says of them. Pure."""

import re
from collections.abc import Container, Mapping, Sequence, Set
from functools import lru_cache
from itertools import takewhile
from typing import Any

from trainer.data.formats.values import Row, filled, shown
from trainer.data.message import Conversation, Message, RowError

# of XTuner and ms-swift, of OpenAI, of Axolotl, and of other tools; in any case, with any sign between the words
FLAGS = frozenset({"loss", "weight", "train", "training", "trainable", "train_on", "do_train"})
# what else decides about training, in a way that is not known here: a mask's 1 is "trained" in some tools and "left
# out" in others
LIKE_FLAGS = re.compile(r"(?:\w*_)?(?:loss|weights?|train|trained|training|trainable|masks?|masked)(?:_\w*)?")
NOTHING: Mapping[str, Any] = {}


def turn_fields(raw: Row, field: str, role: str, known: Set[str]) -> tuple[bool, Mapping[str, Any]]:
    """Whether a turn is trained, and what else it holds beside the keys that its format knows. Only the assistant's
    turns can be trained. Raises RowError for a flag that is not clear."""
    if raw.keys() <= known:
        return True, NOTHING
    flags = read_flags(raw, field)
    trained = all(flags.values())
    if flags and trained and role != "assistant":
        key = next(iter(flags))
        got = f"{shown(raw[key])} on a turn of the {role}"
        raise RowError(f"{field}.{key}", got, "no flag there: only the assistant's turns are trained")
    return trained, {key: value for key, value in raw.items() if key not in {*known, *flags} and filled(value)}


def read_flags(raw: Row, field: str) -> dict[str, bool]:
    """What the flags of a turn say, by their keys; null says nothing. Raises RowError for a flag that is not clear."""
    flags = {key: _flag(field, key, raw[key]) for key in raw if _says(key) in FLAGS and raw[key] is not None}
    _refuse_flags(raw, field, flags, "loss: true or loss: false (other flags have no clear meaning)")
    if len(set(flags.values())) > 1:
        said = ", ".join(f"{key} {shown(raw[key])}" for key in flags)
        raise RowError(field, f"flags that contradict each other ({said})", "one flag")
    return flags


def check_part(raw: Row, field: str) -> None:
    """Raise RowError for a flag in a part of a turn: a turn is trained or not as a whole."""
    _refuse_flags(raw, field, (), "no flag there, but loss: true or loss: false beside the turn's content")


def _refuse_flags(raw: Row, field: str, read: Container[str], expected: str) -> None:
    for key, value in raw.items():
        if key not in read and filled(value) and _says(key):
            raise RowError(f"{field}.{key}", shown(value), expected)


@lru_cache(1000)
def _says(key: str) -> str:
    """The key as FLAGS has it, if it says whether something is trained."""
    name = re.sub(r"[- ]|(?<=[a-z])(?=[A-Z])", "_", key).lower()
    return name if LIKE_FLAGS.fullmatch(name) else ""


def ordered(turns: Sequence[Message], column: str, places: Sequence[int] | None = None) -> Conversation:
    """The turns as templates take them: users in a row joined by a line end, and nothing after the last answer; both
    are noted.

    `column` and `places` say where each turn is in the row. Raises RowError for an assistant that answers nobody or
    nothing, or says nothing, and for a tool's result without a call.
    """
    kept: list[Message] = []
    answered, asked, before = 0, False, ""
    joined, systems = False, 0
    for index, turn in enumerate(turns):
        role = turn.role
        if role == "user":
            asked = True
            if before == "user" and turn.channel == kept[-1].channel:
                kept[-1], joined = _joined(kept[-1], turn), True
                continue
        elif role == "system":
            systems += not turn.channel  # InternLM2's list of functions is a system turn with a channel
        else:
            got, expected = _problem(turn, before, asked, kept)
            if got:
                place = index if places is None else places[index]
                raise RowError(f"{column}[{place}]", got, expected)
        kept.append(turn)
        before = role
        if role == "assistant":
            answered = len(kept)
    if not answered:
        raise RowError(column, "no turn of an assistant", "one at least")
    if not joined and systems < 2 and len(kept) == answered:
        return Conversation(kept)
    held = {"joined": joined, "systems": systems > 1, "trailing": len(kept) > answered}
    return Conversation(kept[:answered], notes=tuple(name for name, is_so in held.items() if is_so))


def _flag(field: str, key: str, value: Any) -> bool:
    if isinstance(value, bool | int | float) and value in (0, 1):
        return bool(value)
    allowed = "0 or 1 (there are no weights in between)" if key.lower() == "weight" else "true or false"
    raise RowError(f"{field}.{key}", shown(value), allowed)


def _joined(first: Message, second: Message) -> Message:
    return second._replace(content=f"{first.content}\n{second.content}", extra={**first.extra, **second.extra})


def _problem(turn: Message, before: str, asked: bool, kept: Sequence[Message]) -> tuple[str, str]:
    """What is wrong with an assistant's or a tool's turn at this place, and what is allowed; else two empty texts."""
    if turn.role == "tool":
        results = sum(1 for _ in takewhile(lambda one: one.role == "tool", reversed(kept)))
        calls = len(kept[-1 - results].calls) if len(kept) > results else 0
        if not calls:
            return "a tool's result without a call", "it after an assistant's call"
        return ("one more tool's result than calls", "one for each call") if results == calls else ("", "")
    if before == "assistant":
        return "two turns of the assistant in a row", "a turn of the user or a tool in between"
    if not asked:
        return "a turn of the assistant before any of the user", "the user's first"
    if not turn.calls and (not turn.content or turn.content.isspace()):
        return "an empty answer", "text"
    return "", ""
