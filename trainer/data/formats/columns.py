"""Formats with a column for the question and one for the answer. Pure.

XTuner adds a system text of its own to most of these sets; none is made up here (Source.system is the user's).
Sources of the columns: the data sets' own cards, and Stanford Alpaca's README.
"""

from collections.abc import Callable

from trainer.data.formats.values import Row, filled_text, optional_items, optional_text, shown, text
from trainer.data.message import Conversation, Message, RowError

NO_ANSWER = "<nooutput>"  # Alpaca's word for a task that has none


def read_pair(*questions: str, answer: str, system: str = "system") -> Callable[[Row], Conversation]:
    """What reads a row with one question, in one or several columns, its answer, and perhaps a system text. The parts
    of the question that are not blank are joined by a line end; only the first column must be there."""

    def read(row: Row) -> Conversation:
        asked = [Message("user", _question(row, questions)), Message("assistant", filled_text(row, answer, "answer"))]
        said = optional_text(row, system)
        return Conversation([Message("system", said), *asked] if said else asked)

    return read


def read_alpaca(row: Row) -> Conversation:
    """instruction, input (may be empty), output; history, a list of [question, answer]; system."""
    turns = [Message("system", said)] if (said := optional_text(row, "system")) else []
    for index, pair in enumerate(optional_items(row, "history")):
        turns += _round(f"history[{index}]", pair)
    answer = filled_text(row, "output", "answer")
    if answer.strip() == NO_ANSWER:
        raise RowError("output", f"{NO_ANSWER}, Alpaca's mark of no answer", "text")
    return Conversation(
        [*turns, Message("user", _question(row, ("instruction", "input"))), Message("assistant", answer)]
    )


def _question(row: Row, columns: tuple[str, ...]) -> str:
    parts = [text(row, columns[0]), *[optional_text(row, column) for column in columns[1:]]]
    filled = [part for part in parts if part and not part.isspace()]
    if not filled:
        raise RowError(columns[0], "an empty question", "text")
    return "\n".join(filled)


def _round(field: str, pair: object) -> list[Message]:
    if not isinstance(pair, list) or len(pair) != 2:
        raise RowError(field, shown(pair), "a list of two texts: question, answer")
    for index, said in enumerate(pair):
        if not isinstance(said, str) or (index == 1 and not said.strip()):
            raise RowError(f"{field}[{index}]", shown(said), "text")
    return [Message("user", pair[0]), Message("assistant", pair[1])]
