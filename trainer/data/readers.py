"""An open file -> its rows, one function a kind of file. A row that cannot be read is a problem of its own and does
not end the file; of a file that is cut off, the error of the library that reads it. [I/O]

Memory is that of a few rows, but for a `.json` that holds one array: it is loaded whole.
"""

import csv
import io
import itertools
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any, NamedTuple

from pydantic_core import from_json

from trainer.data.doubled import doubled_key, doubled_rows
from trainer.data.formats.values import shown
from trainer.errors import ConfigError

BOM = b"\xef\xbb\xbf"
BATCH_ROWS = 256


class Place(NamedTuple):
    """Where a row is. `line` counts from 1: the line of the file (JSON lines, csv), else the row's number."""

    file: str
    line: int


class Read(NamedTuple):
    """A row, or None and what is wrong with it, as "got ..., expected ..."."""

    place: Place
    row: dict[str, Any] | None
    problem: str = ""


def read_jsonl(file: io.BufferedReader, name: str) -> Iterator[Read]:
    """An object a line. Blank lines, a byte order mark and CRLF are fine."""
    first = file.readline().removeprefix(BOM)
    for number, line in enumerate(itertools.chain([first], file), 1):
        try:
            row = from_json(line)
        except ValueError:
            if problem := _line_problem(line.strip(b" \t\r\n")):
                yield Read(Place(name, number), None, problem)
            continue
        yield _checked(Place(name, number), row, doubled_key(line, row))


def read_json(file: io.BufferedReader, name: str) -> Iterator[Read]:
    """One array of objects; or JSON lines, as many a `.json` holds. Raises ConfigError for a broken array: nobody knows
    its rows."""
    if not file.peek(1).removeprefix(BOM).lstrip().startswith(b"["):
        yield from read_jsonl(file, name)
        return
    text = file.read().removeprefix(BOM)
    try:
        rows = from_json(text)
    except ValueError as error:
        raise ConfigError(f"data.sources: {name}: got broken JSON ({error}), expected an array of objects") from error
    for number, (row, doubled) in enumerate(zip(rows, doubled_rows(text, rows), strict=True), 1):
        yield _checked(Place(name, number), row, doubled)


def read_csv(file: io.BufferedReader, name: str) -> Iterator[Read]:
    """Columns named by the first line; every value is text. UTF-8. Raises ConfigError for a column that stands twice:
    only one of them would be read."""
    csv.field_size_limit(sys.maxsize)  # a document is longer than the library's 128 KiB
    lines = csv.reader(io.TextIOWrapper(file, "utf-8-sig", errors="surrogateescape", newline=""), strict=True)
    columns = _single(next(lines, []), name)
    line = lines.line_num + 1
    while True:
        try:
            values = next(lines)
        except StopIteration:
            return
        except csv.Error as error:
            yield Read(Place(name, line), None, f"got broken csv ({error}), expected quotes in pairs around a value")
        else:
            if values:
                yield _csv_row(Place(name, line), columns, values)
        line = lines.line_num + 1


def read_parquet(file: io.BufferedReader, name: str) -> Iterator[Read]:
    """Row groups in their order. Raises ConfigError for a column that stands twice."""
    from pyarrow.parquet import ParquetFile

    number = 0
    table = ParquetFile(file)
    _single(table.schema_arrow.names, name)
    for batch in table.iter_batches(BATCH_ROWS):
        for number, row in enumerate(batch.to_pylist(), number + 1):  # noqa: B020  (goes on counting)
            yield Read(Place(name, number), without_nulls(row))


def without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """The row without the nulls that Arrow puts into an object for every key that another row's object has. The row's
    own columns stay."""
    return {name: _pruned(value) if isinstance(value, dict | list) else value for name, value in row.items()}


def _pruned(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _pruned(inner) for name, inner in value.items() if inner is not None}
    return [_pruned(inner) for inner in value] if isinstance(value, list) else value


def _checked(place: Place, row: Any, doubled: str | None) -> Read:
    if doubled is not None:
        return Read(place, None, f"got the key {doubled[:40]!r} more than once in an object, expected each key once")
    return Read(place, row) if isinstance(row, dict) else Read(place, None, f"got {shown(row)}, expected an object")


def _line_problem(line: bytes) -> str:
    """What is wrong with a line that is no JSON; nothing when it is blank."""
    try:
        from_json(line or b"null")
    except ValueError as error:
        place = str(error).replace(" at line 1 column", " at column")
        return f"got broken JSON ({place}), expected an object on each line"
    return ""


def _single(columns: list[str], name: str) -> list[str]:
    """The columns, each once."""
    counts = Counter(columns)
    if twice := [column for column in counts if counts[column] > 1]:
        listed = ", ".join(map(repr, twice))
        raise ConfigError(f"data.sources: {name}: got the column {listed} more than once, allowed: each name once")
    return columns


def _csv_row(place: Place, columns: list[str], values: list[str]) -> Read:
    if len(values) != len(columns):
        return Read(place, None, f"got {len(values)} values, expected {len(columns)} ({', '.join(columns)})")
    try:
        "".join(values).encode()
    except UnicodeEncodeError:
        return Read(place, None, "got bytes that are no UTF-8, expected UTF-8")
    return Read(place, dict(zip(columns, values, strict=True)))
