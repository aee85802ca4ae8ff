"""Sources -> conversations: the map step, with each source's format found or as the job names it."""

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from trainer.config import Source, TrainConfig
from trainer.data.bad_rows import BadRows
from trainer.data.formats.table import detect_format, mapper, passes
from trainer.data.message import Conversation, RowError
from trainer.data.report import Report
from trainer.data.sources import Read, read_source
from trainer.errors import ConfigError

Mapper = Callable[[dict[str, Any]], Conversation]


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
        convert: Mapper | None = None
        for read in read_source(source):
            if bad.enough:
                return
            report.read += 1
            try:
                row = _row(read)
                if not passes(source, row):
                    report.counts["filtered"] += 1
                    continue
                convert = convert or _mapper(source, config.data.format, row, report)
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


def _mapper(source: Source, default: str, row: dict[str, Any], report: Report) -> Mapper:
    name = source.format or default
    if name == "auto":
        found = detect_format({**row, **{ours: row.get(theirs) for ours, theirs in source.columns.items()}})
        if found is None:
            raise ConfigError(
                f"data.sources: {source.path}: got columns {', '.join(row)}, allowed: those of a known format",
                "name it: format: NAME (docs/data.md lists them), and columns: {...} if they have other names",
            )
        name = found
    report.formats[source.path] = name
    return mapper(name, source)
