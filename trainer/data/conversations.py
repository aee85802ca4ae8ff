"""Sources -> conversations: the map step, with each source's format found or as the job names it."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any, NamedTuple

from trainer.config.job import Source, TrainConfig
from trainer.data.bad_rows import BadRows
from trainer.data.formats.detect import detect_format, other_case
from trainer.data.formats.mapper import mapper, passes, renamed
from trainer.data.formats.preferences import check_preferences
from trainer.data.formats.table import TABLE
from trainer.data.message import Conversation, RowError
from trainer.data.report import Report
from trainer.data.sources import Read, read_source
from trainer.errors import ConfigError

Mapper = Callable[[dict[str, Any]], Conversation]
FIRST_ROWS = 100  # say which format a source has
COLUMN_ROWS = 1000  # one of them has each column that the job names
NAMED_COLUMNS = 20  # in an error


class Mapped(NamedTuple):
    """A row and the conversation that it holds. `source`: its number among all_sources()."""

    source: int
    read: Read
    conversation: Conversation


def all_sources(config: TrainConfig) -> list[Source]:
    """The sources to train on, then those to validate on."""
    validation = config.data.validation
    return [*config.data.sources, *(validation if isinstance(validation, list) else [])]


def read_conversations(config: TrainConfig, report: Report, bad: BadRows) -> Iterator[Mapped]:
    """Every usable row in source order; the others are counted in `report` and told to `bad`."""
    for number, source in enumerate(all_sources(config)):
        reads = read_source(source)
        if source.columns:
            reads = _with_columns(source, reads)
        first = list(islice(reads, FIRST_ROWS))
        rows = [read.row for read in first if read.row is not None]
        convert = _mapper(source, config.data.format, rows, report) if rows else None
        for read in chain(first, reads):
            if bad.enough:
                return
            report.read += 1
            try:
                row = _row(read)
                if not passes(source, row):
                    report.counts["filtered"] += 1
                    continue
                convert = convert or _mapper(source, config.data.format, [row], report)
                conversation = convert(row)
            except RowError as error:
                bad.add(read, str(error))
            else:
                yield Mapped(number, read, conversation)


def _row(read: Read) -> dict[str, Any]:
    if read.row is None:
        got, _, expected = read.problem.removeprefix("got ").partition(", expected ")
        raise RowError("row", got, expected)
    return read.row


def _with_columns(source: Source, reads: Iterator[Read]) -> Iterator[Read]:
    """The rows as they come. Raises ConfigError when none of the first has a column that the job names."""
    missing = set(source.columns.values())
    names: dict[str, None] = {}
    for count, read in enumerate(reads, 1):
        yield read
        if missing and read.row is not None:
            missing -= read.row.keys()
            names |= dict.fromkeys(read.row)
            if count >= COLUMN_ROWS:
                break
    if missing and names:
        raise _missing_columns(source, missing, names)
    yield from reads


def _missing_columns(source: Source, missing: Iterable[str], names: Iterable[str]) -> ConfigError:
    wrong = ", ".join(f"{ours}: {theirs}" for ours, theirs in source.columns.items() if theirs in missing)
    return ConfigError(
        f"data.sources: {source.path}: columns: got {wrong}, but no row has it; the rows have: {_listed(names)}",
        "write {the format's column: the rows' column}; take out what the rows do not have",
    )


def _mapper(source: Source, default: str, rows: Sequence[dict[str, Any]], report: Report) -> Mapper:
    """By the format that the job names, or the one that the first rows have."""
    name = source.format or default
    if name == "auto":
        name = _detected(source, rows)
    if ":" not in name and (others := other_case(name, [renamed(row, source.columns) for row in rows])):
        source = source.model_copy(update={"columns": {**others, **source.columns}})
    report.formats[source.path] = name
    return mapper(name, source)


def _detected(source: Source, rows: Sequence[dict[str, Any]]) -> str:
    found = detect_format([renamed(row, source.columns) for row in rows])
    if found:
        return found
    names = dict.fromkeys(name for row in rows for name in row)
    if missing := set(source.columns.values()) - names.keys():
        raise _missing_columns(source, missing, names)
    try:
        check_preferences(rows[0], list(rows[0]), source.columns, marks=False)
    except RowError as error:
        raise ConfigError(f"data.sources: {source.path}: {error}") from error
    known = ", ".join(f"{name} ({', '.join(table.needs)})" for name, table in TABLE.items())
    raise ConfigError(
        f"data.sources: {source.path}: got columns {_listed(names)}, allowed: those of a known format: {known}",
        "name the format: format: NAME, and map columns with other names: columns: {question: THEIR_NAME}",
    )


def _listed(names: Iterable[str]) -> str:
    return ", ".join(islice(names, NAMED_COLUMNS))
