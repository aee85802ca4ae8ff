"""Rows with a better and a worse answer (DPO), or with an answer that is marked good or bad (KTO): training on the
answers alone would teach the bad ones, so such rows are refused. Pure."""

import re
from collections.abc import Collection
from functools import lru_cache
from typing import Any

from trainer.data.formats.detect import detect_format, is_turns
from trainer.data.formats.values import Row
from trainer.data.message import RowError

# of TRL, LLaMA-Factory and ms-swift; and whatever else is called rejected (rejected_response, RejectedAnswer)
PAIRS = frozenset({"chosen", "kto_tag"})
WORSE = frozenset({"rejected", "undesirable", "dispreferred"})
BETTER = frozenset({"chosen", "desirable", "preferred", "kto"})
ANSWERS = ("completion", "output", "answer", "response")
COMPARED = frozenset({"true", "false", "0", "1", "-1", "0.0", "1.0", "-1.0"})  # which min and max can compare
JUDGEMENTS = frozenset({"good", "bad", "desirable", "undesirable", "chosen", "rejected"})


def check_preferences(row: Row, unused: Collection[str], columns: dict[str, str], *, marks: bool = True) -> None:
    """Raise RowError when columns that nothing reads make the row one of preferences. A job that names one of them in
    `columns` has decided which answer it trains. `marks`: whether the row has an answer that may be marked; a
    document's label is its class."""
    found = [name for name in unused if _is_pair(name) or (marks and _marks(name) and _is_mark(row[name]))]
    if found and not any(map(_is_pair, columns.values())):
        got = f"preference data ({', '.join(found)}), which is not trained here"
        raise RowError(found[0], got, f"one answer; {_advice(row, found)}")


@lru_cache(1000)
def _words(name: str) -> frozenset[str]:
    """The words of a column's name: of is_rejected, isRejected, Is-Rejected."""
    return frozenset(word.lower() for word in re.findall("[A-Z]?[a-z]+|[A-Z]+", name))


def _is_pair(name: str) -> bool:
    return name.lower() in PAIRS or "rejected" in _words(name)


def _marks(name: str) -> bool:
    """Whether a column may say that an answer is good or bad. `label` alone does, not image_label."""
    return name.lower() == "label" or not (WORSE | BETTER).isdisjoint(_words(name))


def _is_mark(value: Any) -> bool:
    """Whether a value says good or bad; the number of a class, or a text, says something else."""
    return str(value).strip().lower() in COMPARED | JUDGEMENTS


def _advice(row: Row, found: list[str]) -> str:
    name = next((name for name in row if name.lower() == "chosen"), "")
    chosen = row.get(name)
    if is_turns(chosen):
        return f"to train the better one alone: format: messages and columns: {{messages: {name}}}"
    if isinstance(chosen, str) and (column := _answer_column(row, name)):
        return f"to train the better one alone: columns: {{{column}: {name}}}"
    mark = next((name for name in found if _marks(name) and _is_mark(row[name])), "")
    if not mark:
        return "to train without, take the columns out"
    if str(row[mark]).strip().lower() not in COMPARED:
        return "to train the good ones alone, take the others out"
    bound = f"max: {{{mark}: 0}}" if WORSE & _words(mark) else f"min: {{{mark}: 1}}"
    return f"to train the good ones alone: {bound}"


def _answer_column(row: Row, chosen: str) -> str:
    """The column without which the row has no format, and with which it has one."""
    for column in ANSWERS:
        rest = {name: value for name, value in row.items() if not _is_pair(name) and name != column}
        if not detect_format([rest]) and detect_format([{**rest, column: row[chosen]}]):
            return column
    return ""
