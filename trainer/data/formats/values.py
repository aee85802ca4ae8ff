"""Values of a row: taken out by name, or a RowError that says what is there instead. Pure."""

import json
from collections.abc import Set
from typing import Any

from pydantic_core import from_json

from trainer.data.doubled import doubled_key
from trainer.data.message import RowError

Row = dict[str, Any]
NAMED_COLUMNS = 20


class MissingColumnError(RowError):
    """A column that is not there. `kind`: what it should hold."""

    def __init__(self, row: Row, column: str, kind: str) -> None:
        names = list(row)[:NAMED_COLUMNS]
        got = f"only the columns {', '.join(names)}" if names else "a row without columns"
        super().__init__(column, got, f"a column {column} with {kind}")
        self.kind = kind


def shown(value: Any) -> str:
    """A value as an error names it."""
    if isinstance(value, str):
        return f"text {value[:40]!r}"
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value)[:40]
    return "a list" if isinstance(value, list) else "an object" if isinstance(value, dict) else type(value).__name__


def filled(value: Any) -> bool:
    """Whether a value says anything: false and 0 do; null, blanks, and an empty list or object do not."""
    return bool(value.strip()) if isinstance(value, str) else value is not None and value not in ([], {})


def unread(place: str, raw: Row, known: Set[str]) -> list[str]:
    """The keys of an object that hold something which its reader does not use; `place` is where the object is."""
    if raw.keys() <= known:
        return []
    return [f"{place}{key}" for key, value in raw.items() if key not in known and filled(value)]


def misfit(row: Row, column: str, expected: str) -> RowError:
    """What to raise for a column that is not there, or holds something else."""
    if column not in row:
        return MissingColumnError(row, column, expected)
    return RowError(column, shown(row[column]), expected)


def text(row: Row, column: str) -> str:
    """The text in a column; may be empty."""
    value = row.get(column)
    if isinstance(value, str):
        return value
    raise misfit(row, column, "text")


def optional_text(row: Row, column: str) -> str:
    """The text in a column; empty when there is no such column, or null in it."""
    return "" if row.get(column) is None else text(row, column)


def filled_text(row: Row, column: str, what: str) -> str:
    """Text that is more than blanks; `what` it is, for the error."""
    value = text(row, column)
    if not value or value.isspace():
        raise RowError(column, f"an empty {what}", "text")
    return value


def items(row: Row, column: str) -> list[Any]:
    """The list in a column, or in its JSON text (csv has no other way to hold one)."""
    value = row.get(column)
    if isinstance(value, str):
        value = parsed(column, value)
    if isinstance(value, list):
        return value
    raise misfit(row, column, "a list")


def optional_items(row: Row, column: str) -> list[Any]:
    """The list in a column; empty when there is no such column, or null or an empty text in it."""
    return [] if row.get(column) in (None, "") else items(row, column)


def parsed(field: str, value: str) -> Any:
    """What a JSON text holds."""
    try:
        found = from_json(value, allow_inf_nan=False)
    except ValueError as error:
        raise RowError(field, f"{shown(value)}, which is no JSON ({error})", "JSON") from error
    if (key := doubled_key(value.encode(), found)) is not None:
        raise RowError(field, f"the key {key[:40]!r} more than once in an object", "each key once")
    return found
