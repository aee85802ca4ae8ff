"""Formats with a column for the question and one for the answer. Pure."""

from trainer.data.formats.values import Row, answer, optional_text, text
from trainer.data.message import Conversation, Message, RowError


def read_alpaca(row: Row) -> Conversation:
    """Stanford Alpaca: instruction, input (may be empty), output; `<nooutput>` is no answer."""
    question, extra, said = text(row, "instruction"), optional_text(row, "input"), answer(row, "output")
    if said.strip() == "<nooutput>":
        raise RowError("output", "'<nooutput>'", "an answer")
    return Conversation([Message("user", f"{question}\n{extra}" if extra else question), Message("assistant", said)])
