"""A source's rows as conversations: what applies to every format, whatever its reader. Pure."""

import importlib
import math
from typing import Any

from trainer.config.job import Source
from trainer.data.formats.preferences import check_preferences
from trainer.data.formats.table import TABLE, Reader
from trainer.data.formats.turns import ordered
from trainer.data.formats.values import MissingColumnError, Row, shown, unread
from trainer.data.message import Conversation, Message, RowError
from trainer.errors import ConfigError

SWITCHES = {"true": 1.0, "false": 0.0}


def mapper(name: str, source: Source) -> Reader:
    """What turns a row of the source into a conversation, its columns renamed and its system text put in front; columns
    that nothing reads are among the conversation's `unread`.

    `name` is one of TABLE, or `module:function`, which makes a Conversation of a row, or a row of the format messages.
    Raises ConfigError for a function or a column that there is not; the reader raises RowError.
    """
    if ":" in name:
        return _with_system(_renaming(_own(name), source.columns), source.system)
    _check_columns(name, source)
    read = _with_system(_renaming(TABLE[name].read, source.columns), source.system)
    columns = source.columns
    known = {columns.get(column, column) for column in TABLE[name].columns} | source.min.keys() | source.max.keys()

    def read_all(row: Row) -> Conversation:
        found = read(row)
        if unused := unread("", row, known):
            check_preferences(row, unused, columns, marks=found.messages[0].role != "text")
            found = found._replace(unread=(*unused, *found.unread))
        return found

    return read_all


def passes(source: Source, row: Row) -> bool:
    """Whether the row is within the source's `min` and `max`; true is 1 and false is 0. Raises RowError for a column
    without a number."""
    if not source.min and not source.max:
        return True
    return all(_number(row, column) >= bound for column, bound in source.min.items()) and all(
        _number(row, column) <= bound for column, bound in source.max.items()
    )


def renamed(row: Row, columns: dict[str, str]) -> Row:
    """The row under the format's names; a column of such a name that the job does not name is not the format's."""
    if not columns:
        return row
    taken = {*columns, *columns.values()}
    kept = {name: value for name, value in row.items() if name not in taken}
    return kept | {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}


def _renaming(read: Reader, columns: dict[str, str]) -> Reader:
    """The reader for rows whose columns have other names, also in its errors."""

    def read_renamed(row: Row) -> Conversation:
        try:
            return read(renamed(row, columns))
        except RowError as error:
            head, rest = _head(error.field)
            column = columns.get(head, head)
            if isinstance(error, MissingColumnError):
                raise MissingColumnError(row, column, error.kind) from error
            raise RowError(column + rest, error.got, error.expected) from error

    return read_renamed if columns else read


def _with_system(read: Reader, system: str | None) -> Reader:
    def read_with_system(row: Row) -> Conversation:
        found = read(row)
        if all(message.role not in ("system", "text") for message in found.messages):
            found.messages.insert(0, Message("system", str(system)))
        return found

    return read_with_system if system else read


def _number(row: Row, column: str) -> float:
    if column not in row:
        raise MissingColumnError(row, column, "a number")
    value: Any = row[column]
    try:
        number = float(SWITCHES.get(str(value).lower(), value))  # csv has numbers as text
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isnan(number):
        raise RowError(column, shown(value), "a number")
    return number


def _check_columns(name: str, source: Source) -> None:
    known = TABLE[name].columns
    if unknown := [column for column in source.columns if column not in known]:
        raise ConfigError(
            f"data.sources: {source.path}: columns: got {', '.join(unknown)}, allowed: {', '.join(known)} "
            f"(of the format {name})"
        )


def _head(field: str) -> tuple[str, str]:
    """A field's column, and the way inside it."""
    end = min((place for place in (field.find("["), field.find(".")) if place >= 0), default=len(field))
    return field[:end], field[end:]


def _own(name: str) -> Reader:
    """The user's function, its own errors and results made those of a format."""
    module, _, attribute = name.partition(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"data.format: got {name}, allowed: a function that can be imported ({error})") from error

    read_messages = mapper("messages", Source(path=name))

    def read(row: Row) -> Conversation:
        try:
            found = function(row)
            return read_messages(found) if isinstance(found, dict) else _checked(name, found)
        except RowError:
            raise
        except Exception as error:
            raise RowError(name, f"{type(error).__name__}: {error}", "a conversation") from error

    return read


def _checked(name: str, found: Any) -> Conversation:
    if not isinstance(found, Conversation):
        raise RowError(name, shown(found), "a Conversation, or an object {messages: [...]}")
    if found.messages and found.messages[0].role == "text":
        return found
    kept = ordered(found.messages, "messages")
    return found._replace(messages=kept.messages, notes=found.notes + kept.notes)
