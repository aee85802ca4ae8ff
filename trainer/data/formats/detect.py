"""Which format rows have, known by their columns and by what their turns look like. Pure."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from trainer.data.formats.agents import MSAGENT_TOOLS
from trainer.data.formats.table import TABLE
from trainer.data.formats.values import Row

# columns -> format, once no list of turns says it; those that look like another format (medical) are left out
BY_COLUMNS = {
    name: frozenset(TABLE[name].needs)
    for name in ("alpaca_zh", "alpaca", "question_answer", "prompt_completion", "user_assistant", "dolly", "openorca",
                 "tiny_codes", "sql", "arxiv", "colors", "stack_exchange", "input_output", "text", "wanjuan_image_text")
} | {"wanjuan": frozenset({"id", "content"})}  # fmt: skip
ALPACA = ("alpaca_zh", "alpaca")  # whatever columns they have beside theirs


def detect_format(rows: Sequence[Row]) -> str | None:
    """The format of most of the rows; None when they have none, or each may have several. A column's name counts, not
    what it holds: one bad value says nothing about the format. Upper and lower case are the same."""
    found = Counter(name for name in map(_format, rows) if name)
    return found.most_common(1)[0][0] if found else None


def other_case(name: str, rows: Sequence[Row]) -> dict[str, str]:
    """The format's columns that the rows write in another case: {question: Question}."""
    names = dict.fromkeys(column for row in rows for column in row)
    found = {}
    for column in TABLE[name].columns:
        variants = [written for written in names if written.lower() == column]
        if column not in names and len(variants) == 1:
            found[column] = variants[0]
    return found


def _format(row: Row) -> str | None:
    row = {**{name.lower(): value for name, value in row.items()}, **row}
    return _chat_format(row) or _column_format(row) or _named_chat(row)


def _chat_format(row: Row) -> str | None:
    if isinstance(row.get("messages"), list):
        return "messages"
    if isinstance(turns := row.get("conversations"), list):
        values = [str(turn.get("value")) for turn in turns if isinstance(turn, dict)]
        marks = any("<|startofthink|>" in value or MSAGENT_TOOLS in value for value in values)
        return "msagent" if marks else "sharegpt"
    return "moss" if isinstance(row.get("chat"), dict) and "turn_1" in row["chat"] else None


def _column_format(row: Row) -> str | None:
    fitting = [name for name, needs in BY_COLUMNS.items() if row.keys() >= needs]
    fitting = [name for name in fitting if name not in _excluded(row)]
    if alpaca := [name for name in fitting if name in ALPACA]:
        return alpaca[0]
    widest = [name for name in fitting if not any(BY_COLUMNS[name] < BY_COLUMNS[other] for other in fitting)]
    if len(widest) > 1:
        widest = [name for name in widest if all(isinstance(row[column], str) for column in BY_COLUMNS[name])]
    if widest == ["text"] and "### Human:" in str(row["text"]):
        return "guanaco"
    return widest[0] if len(widest) == 1 else None


def _excluded(row: Row) -> tuple[str, ...]:
    """A turn with an id is no document; one of WanJuan is with images when it has a list of them."""
    with_images = row.get("img_list") is not None
    return ("wanjuan",) if with_images or "role" in row else ("wanjuan_image_text",)


def _named_chat(row: Row) -> str | None:
    """By the name of a column that holds no list of turns: the error is then about what it holds."""
    return "messages" if "messages" in row else "sharegpt" if "conversations" in row else None


def is_turns(value: Any) -> bool:
    """A list of messages as OpenAI's API has them."""
    return isinstance(value, list) and bool(value) and all(isinstance(turn, dict) and "role" in turn for turn in value)
