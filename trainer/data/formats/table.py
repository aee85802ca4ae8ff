"""Name of a format -> the function that reads its rows; how a format is known by its columns. Pure."""

import math
from collections.abc import Callable
from typing import Any

from trainer.config import Source
from trainer.data.formats.chat import read_guanaco, read_messages
from trainer.data.formats.columns import read_alpaca
from trainer.data.formats.values import Row, missing, shown
from trainer.data.message import Conversation, Message, RowError

Reader = Callable[[Row], Conversation]
READERS: dict[str, Reader] = {"messages": read_messages, "guanaco": read_guanaco, "alpaca": read_alpaca}


def mapper(name: str, source: Source) -> Reader:
    """What turns a row of the source into a conversation, its columns renamed and its system text put in front. The
    function raises RowError."""
    read, system, columns = READERS[name], source.system, source.columns

    def with_system(row: Row) -> Conversation:
        conversation = read(_renamed(row, columns) if columns else row)
        if system and all(message.role not in ("system", "text") for message in conversation.messages):
            conversation.messages.insert(0, Message("system", system))
        return conversation

    return with_system if system or columns else read


def detect_format(row: Row) -> str | None:
    """The format whose columns the row has, or None."""
    if isinstance(row.get("messages"), list):
        return "messages"
    if {"instruction", "output"} <= row.keys():
        return "alpaca"
    if isinstance(row.get("text"), str) and "### Human:" in row["text"]:
        return "guanaco"
    return None


def passes(source: Source, row: Row) -> bool:
    """Whether the row is within the source's `min` and `max`. Raises RowError for a column without a number."""
    return all(_number(row, column) >= bound for column, bound in source.min.items()) and all(
        _number(row, column) <= bound for column, bound in source.max.items()
    )


def _number(row: Row, column: str) -> float:
    if column not in row:
        raise missing(row, column, "a number")
    value: Any = row[column]
    try:
        number = float("nan" if isinstance(value, bool) else value)
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if math.isnan(number):
        raise RowError(column, shown(value), "a number")
    return number


def _renamed(row: Row, columns: dict[str, str]) -> Row:
    taken = {*columns, *columns.values()}
    kept = {name: value for name, value in row.items() if name not in taken}
    return kept | {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}
