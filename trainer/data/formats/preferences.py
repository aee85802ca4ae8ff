"""Rows with a better and a worse answer (DPO), or with an answer that is marked good or bad (KTO): training on the
answers alone would teach the bad ones, so such rows are refused. Pure."""

from collections.abc import Collection

from trainer.data.formats.detect import detect_format, is_turns
from trainer.data.formats.values import Row
from trainer.data.message import RowError

# of TRL and LLaMA-Factory, and of ms-swift
COLUMNS = frozenset({"chosen", "rejected", "kto_tag", "rejected_response", "rejected_messages"})
ANSWERS = ("completion", "output", "answer", "response")
MARKS = ("true", "false")


def check_preferences(row: Row, unused: Collection[str], columns: dict[str, str]) -> None:
    """Raise RowError when columns that nothing reads make the row one of preferences. A job that names one of them in
    `columns` has decided which answer it trains."""
    found = [name for name in unused if name in COLUMNS or (name == "label" and _is_mark(row))]
    if found and COLUMNS.isdisjoint(columns.values()):
        got = f"preference data ({', '.join(found)}), which is not trained here"
        raise RowError(found[0], got, f"one answer; {_advice(row, found)}")


def _is_mark(row: Row) -> bool:
    """A label that says whether the answer is good; the number of a class says something else."""
    return str(row["label"]).lower() in MARKS or ("completion" in row and str(row["label"]) in ("0", "1"))


def _advice(row: Row, found: list[str]) -> str:
    chosen = row.get("chosen")
    if is_turns(chosen):
        return "to train the better one alone: format: messages and columns: {messages: chosen}"
    if isinstance(chosen, str) and (column := _answer_column(row)):
        return f"to train the better one alone: columns: {{{column}: chosen}}"
    mark = next((name for name in found if name in ("label", "kto_tag")), "")
    return f"to train the good ones alone: min: {{{mark}: 1}}" if mark else "to train without, take the columns out"


def _answer_column(row: Row) -> str:
    """The column without which the row has no format, and with which it has one."""
    for column in ANSWERS:
        rest = {name: value for name, value in row.items() if name not in COLUMNS and name != column}
        if not detect_format([rest]) and detect_format([{**rest, column: row["chosen"]}]):
            return column
    return ""
