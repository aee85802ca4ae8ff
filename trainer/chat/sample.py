"""The answers to a file of prompts, in batches."""

from collections.abc import Callable, Sequence
from typing import Any

from trainer.chat.problems import explained
from trainer.chat.prompts import Prompt
from trainer.chat.results import Printed, Results
from trainer.chat.session import ChatSession
from trainer.data.message import Message, RowError
from trainer.data.own_template import openai_messages
from trainer.errors import ConfigError


def answer_file(
    session: ChatSession,
    prompts: Sequence[Prompt],
    results: Results | Printed,
    batch_size: int,
    tell: Callable[[str], None],
) -> None:
    """Add the rows with their answers to `results`, batch by batch in the order of the file, behind those that it has.
    Every prompt is encoded first: one that cannot be answered ends it before the first answer. Raises TrainError."""
    prompts = prompts[len(results.rows) :]
    encoded = [_ids(session, prompt) for prompt in prompts]
    for start in range(0, len(prompts), batch_size):
        batch = prompts[start : start + batch_size]
        with explained():
            messages = session.say_all(encoded[start : start + batch_size], [bool(prompt.tools) for prompt in batch])
        results.add([_row(prompt, message) for prompt, message in zip(batch, messages, strict=True)])
        tell(f"answered {start + len(batch)} of {len(prompts)}")


def score(rows: Sequence[dict[str, Any]]) -> str | None:
    """How many are answered as taught; None when no row says what was."""
    asked = [row["exact"] for row in rows if "exact" in row]
    return f"score: {sum(asked)}/{len(asked)} answered as taught" if asked else None


def _ids(session: ChatSession, prompt: Prompt) -> list[int]:
    try:
        return session.prompt_ids(prompt.messages, prompt.tools)
    except (RowError, ConfigError) as error:
        raise ConfigError(f"--prompts: line {prompt.line}: {error}") from error


def _row(prompt: Prompt, message: Message) -> dict[str, Any]:
    row = {**prompt.row, "answer": message.content}
    if message.calls:
        row["tool_calls"] = openai_messages([message])[0]["tool_calls"]
    if prompt.expect is not None:
        row["exact"] = message.content.strip() == prompt.expect.strip()
    return row
