"""What a row becomes: a conversation of messages. Pure."""

from collections.abc import Mapping
from typing import Any, NamedTuple


class ToolCall(NamedTuple):
    """A function that the model calls. `arguments`: an object as JSON text would be parsed; of the code interpreter
    (`name` "interpreter"), the code itself."""

    name: str
    arguments: Any


class Message(NamedTuple):
    """One turn. `role` is system, user, assistant, tool (what a called function returned), or text (a document without
    roles, for pre-training). `loss`: whether an assistant's turn is trained. `channel`: where a tool's result comes
    from (plugin, interpreter, file), as InternLM2 writes it into the turn's header. `extra`: what else the row says of
    the turn, such as reasoning_content; only a tokenizer's own template may write it."""

    role: str
    content: str
    loss: bool = True
    calls: tuple[ToolCall, ...] = ()
    channel: str = ""
    extra: Mapping[str, Any] = {}


class Conversation(NamedTuple):
    """`tools` are the functions that the model may call, each as in OpenAI's API: {name, description, parameters}.
    `images`: paths or addresses, one for each `<image>` in the messages. `notes`: what of the row is not in these as it
    stands there (names of trainer.data.report.NOTES), and `unread`: columns and keys with a value that no reader
    used."""

    messages: list[Message]
    tools: tuple[dict[str, Any], ...] = ()
    images: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    unread: tuple[str, ...] = ()


class RowError(ValueError):
    """A row that does not have the shape of its format. `field` is where, such as `messages[2].content`."""

    def __init__(self, field: str, got: str, expected: str) -> None:
        super().__init__(f"{field}: got {got}, expected {expected}")
        self.field, self.got, self.expected = field, got, expected
