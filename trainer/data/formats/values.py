"""Values of a row: taken out by name, or a RowError that says what is there instead. Pure."""

import json
from typing import Any

from pydantic_core import from_json

from trainer.data.message import RowError

Row = dict[str, Any]
COLUMNS_NAMED = 20


def shown(value: Any) -> str:
    """A value as an error names it."""
    if isinstance(value, str):
        return f"text {value[:40]!r}"
    if isinstance(value, bool | int | float | None):
        return json.dumps(value)
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else type(value).__name__


def missing(row: Row, column: str, expected: str) -> RowError:
    """What to raise for a column that is not there."""
    names = [str(name) for name in row][:COLUMNS_NAMED]
    got = f"only the columns {', '.join(names)}" if names else "a row without columns"
    return RowError(column, got, f"a column {column} with {expected}")


def text(row: Row, column: str) -> str:
    """The text in a column; may be empty."""
    value = row.get(column)
    if isinstance(value, str):
        return value
    raise RowError(column, shown(value), "text") if column in row else missing(row, column, "text")


def optional_text(row: Row, column: str) -> str:
    """The text in a column; empty when there is none or null."""
    return "" if row.get(column) is None else text(row, column)


def answer(row: Row, column: str) -> str:
    """Text with something in it."""
    value = text(row, column)
    if not value or value.isspace():
        raise RowError(column, "an empty answer", "text")
    return value


def items(row: Row, column: str) -> list[Any]:
    """The list in a column, or in its JSON text (csv has no other way to hold one)."""
    value = row.get(column)
    if isinstance(value, str):
        value = parsed(column, value)
    if isinstance(value, list):
        return value
    raise RowError(column, shown(value), "a list") if column in row else missing(row, column, "a list")


def parsed(field: str, value: str) -> Any:
    """What a JSON text holds."""
    try:
        return from_json(value)
    except ValueError as error:
        raise RowError(field, f"text that is no JSON ({error})", "JSON") from error
