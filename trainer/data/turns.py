"""What all chat formats that write one message after the other have in common. Pure.

Content is written as it is: some makers' templates (Llama 2 and 3, Gemma) strip blanks around it; ours strip none, and
neither does the Jinja that they write, so a served model sees what it was trained on.
"""

import re
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Literal, NamedTuple

from trainer.data.message import Conversation, Message, RowError
from trainer.data.segment import Segment
from trainer.data.tools import TOOL_TEMPLATES, ToolForm, Tools, check_result


@dataclass(frozen=True)
class Template(ABC):
    """A chat format. `required` are the special tokens it cannot do without; `stop` those that end an answer."""

    name: str
    required: tuple[str, ...]
    stop: tuple[str, ...]

    @abstractmethod
    def render(self, messages: Sequence[Message], tools: Tools = ()) -> list[Segment]:
        """The whole conversation. Raises RowError for what the format cannot write."""

    @abstractmethod
    def prompt(self, messages: Sequence[Message], tools: Tools = ()) -> list[Segment]:
        """What generation starts from: the conversation and the header of the answer."""

    def render_row(self, conversation: Conversation) -> list[Segment]:
        """A conversation that is trained on: as `render`, but functions that are never called may be left out, which
        `unwritten` says."""
        return self.render(conversation.messages, conversation.tools)

    @abstractmethod
    def unwritten(self, conversation: Conversation, segments: Sequence[Segment]) -> list[str]:
        """What the conversation holds and its rendered segments do not: names of fields, each once."""

    @abstractmethod
    def jinja(self) -> str:
        """A `chat_template` for tokenizer_config.json that renders the same text for the same messages."""


class Around(NamedTuple):
    """What stands before and after a user's message."""

    before: str
    after: str


class Answer(NamedTuple):
    """What stands around an answer. A prompt ends with `header`; the model writes `lead`, the answer, `trail` and
    `end`, so these are trained; `after` is not."""

    header: str
    end: str
    after: str = ""
    lead: str = ""
    trail: str = ""


class System(NamedTuple):
    """What stands around a system message, and where one may stand: anywhere, as the first message only, or as the
    first message that is written into the first user's turn, in front of what the user says. `default`: the text that
    the format has without any."""

    before: str
    after: str
    place: Literal["anywhere", "first", "user"] = "anywhere"
    default: str = ""


@dataclass(frozen=True)
class TurnTemplate(Template):
    """A format that writes one message after the other. `start` stands once in front of all. `shares_tokens`: the
    token that begins the next turn is the one that ended the answer, and is written once."""

    start: str
    system: System
    user: Around
    answer: Answer
    tools: ToolForm | None = None
    shares_tokens: bool = False

    def render(self, messages: Sequence[Message], tools: Tools = ()) -> list[Segment]:
        segments = [*self._start]
        front: Sequence[Segment] = self._open(segments, messages, tools) if tools or self._opens else ()
        for index, (role, content, loss, calls, channel, _) in enumerate(messages):
            if role == "assistant" and not calls:
                before, after = self._answers[loss]
                segments += before
                segments.append(Segment(content, loss, False, True))
                segments += after
            elif role == "user" and not (channel and self._names):
                segments += self._user_before
                segments += front
                front = ()
                segments.append(Segment(content, False, False, True))
                segments += self._user_after
            else:
                segments += self._other(messages, index, tools)
        if front:
            raise RowError("messages", "no user message", f"one that {self.name} can write the system text into")
        return _written_once(segments) if self.shares_tokens else segments

    def prompt(self, messages: Sequence[Message], tools: Tools = ()) -> list[Segment]:
        segments = [*self.render(messages, tools), *self._split(self.answer.header)]
        return _written_once(segments) if self.shares_tokens else segments

    def render_row(self, conversation: Conversation) -> list[Segment]:
        messages, tools = conversation.messages, conversation.tools
        if tools and self.tools is None and not any(message.calls for message in messages):
            tools = ()
        return self.render(messages, tools)

    def unwritten(self, conversation: Conversation, segments: Sequence[Segment]) -> list[str]:
        names = ["tools"] if conversation.tools and self.tools is None else []
        for message in conversation.messages:
            names += message.extra
            if message.channel and not self._names:
                names.append("name")
        return list(dict.fromkeys(names)) if names else names

    def jinja(self) -> str:
        from trainer.data.jinja_form import jinja_text

        return jinja_text(self)

    def _open(self, segments: list[Segment], messages: Sequence[Message], tools: Tools) -> list[Segment]:
        """Add what stands before the first message; give back what stands inside the first user's turn."""
        has_system = bool(messages) and messages[0].role == "system"
        in_user = self.system.place == "user"
        place, declared = self._declared(tools, has_system and not in_user)
        if not has_system and (self.system.default or place == "system"):
            said = self._split(self.system.default)
            segments += self._system_turn([*said, *declared] if place == "system" else said)
        if place == "turn" and (in_user or not has_system):
            segments += declared
        front = self._system_turn([Segment(messages[0].content, content=True)]) if has_system and in_user else []
        return [*front, *declared] if place == "front" else front

    def _declared(self, tools: Tools, after_system: bool) -> tuple[str, list[Segment]]:
        """Where the functions are named, and how."""
        if not tools:
            return "", []
        form = self._form("tools")
        return form.place, self._marked(form.declare(tools, after_system))

    def _other(self, messages: Sequence[Message], index: int, tools: Tools) -> list[Segment]:
        """A message that is not a plain question or answer."""
        role, content, _, _, channel, _ = messages[index]
        if role == "assistant":
            return self._call_turn(messages, index)
        if role == "tool":
            form = self._form(f"messages[{index}].role")
            check_result(messages, index)
            return self._marked(form.result(messages, index))
        if role == "user":
            return self._named_turn(role, channel, content)
        if role != "system":
            raise RowError(f"messages[{index}].role", role, "system, user, assistant or tool")
        if index and self.system.place != "anywhere":
            raise RowError(f"messages[{index}].role", "system", f"system as the first message only ({self.name})")
        return self._system_message(messages[index], () if index else tools)

    def _system_message(self, message: Message, tools: Tools) -> list[Segment]:
        """`tools`: those that are named with it."""
        if self.system.place == "user":
            return []  # stands in the user's turn
        place, declared = self._declared(tools, True)
        inside, behind = (declared if place == "system" else []), (declared if place == "turn" else [])
        if message.channel and self._names:
            return [*self._named_turn("system", message.channel, message.content), *behind]
        return [*self._system_turn([Segment(message.content, content=True), *inside]), *behind]

    def _named_turn(self, role: str, channel: str, content: str) -> list[Segment]:
        assert self.tools
        assert self.tools.named
        return self._marked(self.tools.named(role, channel, content))

    def _system_turn(self, said: Sequence[Segment]) -> list[Segment]:
        return [*self._split(self.system.before), *said, *self._split(self.system.after)]

    def _call_turn(self, messages: Sequence[Message], index: int) -> list[Segment]:
        form = self._form(f"messages[{index}].tool_calls")
        following = messages[index + 1].role if index + 1 < len(messages) else ""
        if form.end and following not in ("tool", ""):
            raise RowError(f"messages[{index + 1}].role", f"{following} after a call", f"tool ({self.name})")
        end = form.end or self.answer.end
        ending = Segment(end, messages[index].loss, control=True, ends_turn=following != "tool")
        body = self._marked(form.call(messages, index))
        return [*self._split(self.answer.header), *body, ending, *self._split(self.answer.after)]

    def _form(self, field: str) -> ToolForm:
        if self.tools is None:
            raise RowError(field, f"function calls with the template {self.name}", f"one of {TOOL_TEMPLATES}")
        return self.tools

    def _marked(self, segments: Sequence[Segment]) -> list[Segment]:
        """A tool form's text with its special tokens apart; what came with the row stays whole."""
        marked: list[Segment] = []
        for segment in segments:
            marked += (segment,) if segment.content else self._split(segment.text, segment.trained)
        return marked

    def _split(self, text: str, trained: bool = False) -> tuple[Segment, ...]:
        return split_text(text, self._tokens, trained)

    @cached_property
    def _tokens(self) -> tuple[str, ...]:
        return (*self.required, *(self.tools.tokens if self.tools else ()))

    @cached_property
    def _names(self) -> bool:
        return bool(self.tools and self.tools.named)

    @cached_property
    def _opens(self) -> bool:
        return self.system.place == "user" or bool(self.system.default)

    @cached_property
    def _start(self) -> tuple[Segment, ...]:
        return self._split(self.start)

    @cached_property
    def _user_before(self) -> tuple[Segment, ...]:
        return self._split(self.user.before)

    @cached_property
    def _user_after(self) -> tuple[Segment, ...]:
        return self._split(self.user.after)

    @cached_property
    def _answers(self) -> dict[bool, tuple[tuple[Segment, ...], tuple[Segment, ...]]]:
        """What stands before and after an answer: of one that is trained, and of one that is not."""
        header, end, after, lead, trail = self.answer
        return {
            loss: (
                (*self._split(header), *self._split(lead, loss)),
                (
                    *self._split(trail, loss),
                    Segment(end, loss, control=True, ends_turn=True),
                    *self._split(after),
                ),
            )
            for loss in (True, False)
        }


def _written_once(segments: list[Segment]) -> list[Segment]:
    """Leave out a special token that stands right behind itself."""
    return [
        segment
        for before, segment in zip([None, *segments], segments, strict=False)
        if not (before and segment.control and before.control and before.text == segment.text)
    ]


@lru_cache(maxsize=1024)
def split_text(text: str, tokens: tuple[str, ...], trained: bool = False) -> tuple[Segment, ...]:
    """A template's own text as segments, one for each special token in it."""
    longest_first = sorted(tokens, key=len, reverse=True)
    parts = re.split("(" + "|".join(map(re.escape, longest_first)) + ")", text)
    return tuple(Segment(part, trained, control=part in tokens) for part in parts if part)
