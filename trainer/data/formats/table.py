"""Name of a format -> the function that reads its rows; how a format is known by its columns; what of a source applies
to every format. Pure."""

import importlib
import math
from collections.abc import Callable
from typing import Any, NamedTuple

from trainer.config import Source
from trainer.data.formats.agents import MSAGENT_TOOLS, read_moss, read_msagent
from trainer.data.formats.chat import read_guanaco, read_messages, read_sharegpt
from trainer.data.formats.columns import read_alpaca, read_pair
from trainer.data.formats.documents import read_text, read_wanjuan, read_wanjuan_images
from trainer.data.formats.turns import ordered
from trainer.data.formats.values import MissingColumnError, Row, shown
from trainer.data.message import Conversation, Message, RowError
from trainer.errors import ConfigError

Reader = Callable[[Row], Conversation]


class Format(NamedTuple):
    """How rows are read, the columns that they must have, and those that they may have."""

    read: Reader
    needs: tuple[str, ...]
    takes: tuple[str, ...] = ()


IMAGES = ("images", "image")
TABLE = {
    "messages": Format(read_messages, ("messages",), ("tools", *IMAGES)),
    "sharegpt": Format(read_sharegpt, ("conversations",), ("system", "tools", *IMAGES)),
    "guanaco": Format(read_guanaco, ("text",)),
    "alpaca": Format(read_alpaca, ("instruction", "output"), ("input", "history", "system")),
    "alpaca_zh": Format(
        read_pair("instruction_zh", "input_zh", answer="output_zh"), ("instruction_zh", "output_zh"), ("input_zh",)
    ),
    "moss": Format(read_moss, ("chat",), ("meta_instruction",)),
    "msagent": Format(read_msagent, ("conversations",)),
    "openorca": Format(
        read_pair("question", answer="response", system="system_prompt"), ("system_prompt", "question", "response")
    ),
    "code_alpaca": Format(read_pair("prompt", answer="completion"), ("prompt", "completion")),
    "tiny_codes": Format(read_pair("prompt", answer="response"), ("prompt", "response")),
    "sql": Format(read_pair("context", "question", answer="answer"), ("context", "question", "answer")),
    "medical": Format(read_pair("instruction", "input", answer="output"), ("instruction", "output"), ("input",)),
    "arxiv": Format(read_pair("abstract", answer="title"), ("abstract", "title")),
    "colors": Format(read_pair("description", answer="color"), ("description", "color")),
    "law_reference": Format(read_pair("question", answer="answer"), ("question", "answer")),
    "crime_kg_assistant": Format(read_pair("input", answer="output"), ("input", "output")),
    "stack_exchange": Format(read_pair("question", answer="response"), ("question", "response")),
    "input_output": Format(read_pair("input", answer="output", system="system"), ("input", "output"), ("system",)),
    "text": Format(read_text, ("text",)),
    "wanjuan": Format(read_wanjuan, ("content",)),
    "wanjuan_image_text": Format(read_wanjuan_images, ("content", "img_list")),
}
# known by columns of text alone, once no other format fits; those that look like another (medical) are left out
BY_TEXT_COLUMNS = (
    "openorca", "code_alpaca", "tiny_codes", "sql", "arxiv", "colors", "law_reference", "stack_exchange",
    "input_output", "text",
)  # fmt: skip


def mapper(name: str, source: Source) -> Reader:
    """What turns a row of the source into a conversation, its columns renamed and its system text put in front.

    `name` is one of TABLE, or `module:function`, which makes a Conversation of a row, or a row of the format messages.
    Raises ConfigError for a function or a column that there is not; the reader raises RowError.
    """
    read = _own(name) if ":" in name else TABLE[name].read
    columns, system = source.columns, source.system
    if ":" not in name:
        _check_columns(name, source)

    def read_as_told(row: Row) -> Conversation:
        try:
            found = read(_renamed(row, columns))
        except RowError as error:
            head, rest = _head(error.field)
            column = columns.get(head, head)
            if isinstance(error, MissingColumnError):
                raise MissingColumnError(row, column, error.kind) from error
            raise RowError(column + rest, error.got, error.expected) from error
        if system and all(message.role not in ("system", "text") for message in found.messages):
            found.messages.insert(0, Message("system", system))
        return found

    return read_as_told if system or columns else read


def detect_format(row: Row) -> str | None:
    """The format whose columns the row has; None when none has, or several have."""
    chat = _chat_format(row)
    if chat:
        return chat
    columns = {name for name, value in row.items() if isinstance(value, str)}
    for name in ("alpaca_zh", "alpaca"):
        if columns.issuperset(TABLE[name].needs):
            return name
    if "content" in columns and "role" not in row:
        return "wanjuan_image_text" if row.get("img_list") is not None else "wanjuan" if "id" in row else None
    if "text" in columns and "### Human:" in row["text"]:
        return "guanaco"
    fitting = [name for name in BY_TEXT_COLUMNS if columns.issuperset(TABLE[name].needs)]
    widest = [
        name for name in fitting if not any(set(TABLE[name].needs) < set(TABLE[other].needs) for other in fitting)
    ]
    return widest[0] if len(widest) == 1 else None


def passes(source: Source, row: Row) -> bool:
    """Whether the row is within the source's `min` and `max`. Raises RowError for a column without a number."""
    if not source.min and not source.max:
        return True
    return all(_number(row, column) >= bound for column, bound in source.min.items()) and all(
        _number(row, column) <= bound for column, bound in source.max.items()
    )


def _chat_format(row: Row) -> str | None:
    if _turns_with(row.get("messages"), "role"):
        return "messages"
    if turns := _turns_with(row.get("conversations"), "from"):
        values = [str(turn.get("value")) for turn in turns if isinstance(turn, dict)]
        marks = any("<|startofthink|>" in value or MSAGENT_TOOLS in value for value in values)
        return "msagent" if marks else "sharegpt"
    return "moss" if isinstance(row.get("chat"), dict) and "turn_1" in row["chat"] else None


def _turns_with(value: Any, key: str) -> list[Any]:
    return value if isinstance(value, list) and value and isinstance(value[0], dict) and key in value[0] else []


def _number(row: Row, column: str) -> float:
    if column not in row:
        raise MissingColumnError(row, column, "a number")
    value: Any = row[column]
    try:
        number = math.nan if isinstance(value, bool) else float(value)  # csv has numbers as text
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if math.isnan(number):
        raise RowError(column, shown(value), "a number")
    return number


def _check_columns(name: str, source: Source) -> None:
    known = TABLE[name].needs + TABLE[name].takes
    if unknown := [column for column in source.columns if column not in known]:
        raise ConfigError(
            f"data.sources: {source.path}: columns: got {', '.join(unknown)}, allowed: {', '.join(known)} "
            f"(of the format {name})"
        )


def _renamed(row: Row, columns: dict[str, str]) -> Row:
    if not columns:
        return row
    taken = {*columns, *columns.values()}
    kept = {name: value for name, value in row.items() if name not in taken}
    return kept | {ours: row[theirs] for ours, theirs in columns.items() if theirs in row}


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

    def read(row: Row) -> Conversation:
        try:
            return _as_conversation(name, function(row))
        except RowError:
            raise
        except Exception as error:
            raise RowError(name, f"{type(error).__name__}: {error}", "a conversation") from error

    return read


def _as_conversation(name: str, found: Any) -> Conversation:
    if isinstance(found, dict):
        return read_messages(found)
    if not isinstance(found, Conversation):
        raise RowError(name, shown(found), "a Conversation, or an object {messages: [...]}")
    if found.messages and found.messages[0].role == "text":
        return found
    return found._replace(messages=ordered(found.messages, "messages"))
