"""The order of turns in a conversation, checked in one place for every chat format. Pure."""

from collections.abc import Sequence

from trainer.data.message import Message, RowError


def ordered(turns: Sequence[Message], column: str, places: Sequence[int] | None = None) -> list[Message]:
    """The turns as templates take them: users in a row joined by a line end, and nothing after the last answer.

    `column` and `places` say where each turn is in the row. Raises RowError for an assistant that answers nobody or
    nothing, or says nothing, and for a tool's result without a call.
    """
    kept: list[Message] = []
    answered, asked, before = 0, False, ""
    for index, turn in enumerate(turns):
        role = turn.role
        if role == "user":
            asked = True
            if before == "user" and turn.channel == kept[-1].channel:
                kept[-1] = turn._replace(content=f"{kept[-1].content}\n{turn.content}")
                continue
        elif role != "system":
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
    del kept[answered:]
    return kept


def _problem(turn: Message, before: str, asked: bool, kept: Sequence[Message]) -> tuple[str, str]:
    """What is wrong with an assistant's or a tool's turn at this place, and what is allowed; else two empty texts."""
    if turn.role == "tool":
        called = before == "tool" or (before == "assistant" and bool(kept[-1].calls))
        return ("", "") if called else ("a tool's result without a call", "it after an assistant's call")
    if before == "assistant":
        return "two turns of the assistant in a row", "a turn of the user or a tool in between"
    if not asked:
        return "a turn of the assistant before any of the user", "the user's first"
    if not turn.calls and (not turn.content or turn.content.isspace()):
        return "an empty answer", "text"
    return "", ""
