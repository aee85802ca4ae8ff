"""Chat formats: a conversation as text segments, each known to be trained or not. Pure.

The strings are those of the model makers, the source beside each. Content is written as it is: some makers' templates
(Llama 2 and 3, Gemma) strip blanks around it; ours strip none, and neither does the Jinja that they write, so a
served model sees what it was trained on. No system text is invented where a maker's template would add one, but for
the sentence that Vicuna's and Alpaca's formats begin with.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal, NamedTuple

from trainer.data.message import Message, RowError
from trainer.data.segment import Segment
from trainer.data.tools import HERMES, INTERNLM2, ToolForm, Tools, calls_before, check_result, split_text


@dataclass(frozen=True)
class Template:
    """A chat format. `required` are the special tokens it cannot do without; `stop` those that end an answer."""

    name: str
    required: tuple[str, ...]
    stop: tuple[str, ...]

    def render(self, messages: Sequence[Message], tools: Tools = ()) -> list[Segment]:
        """The whole conversation. Raises RowError for what the format cannot write."""
        raise NotImplementedError

    def prompt(self, messages: Sequence[Message], tools: Tools = ()) -> list[Segment]:
        """What generation starts from: the conversation and the header of the answer."""
        raise NotImplementedError

    def jinja(self) -> str:
        """A `chat_template` for tokenizer_config.json that renders the same text for the same messages."""
        raise NotImplementedError


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
        for index, (role, content, loss, calls, channel) in enumerate(messages):
            if role == "assistant" and not calls:
                before, after = self._answers[loss]
                segments += before
                segments.append(Segment(content, loss, False, True))
                segments += after
            elif role == "user" and not channel:
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

    def jinja(self) -> str:
        from trainer.data.jinja_form import jinja_text

        return jinja_text(self)

    def _open(self, segments: list[Segment], messages: Sequence[Message], tools: Tools) -> list[Segment]:
        """Add what stands before the first message; give back what stands inside the first user's turn."""
        has_system = bool(messages) and messages[0].role == "system"
        form = self._tool_form("tools") if tools else None
        front: list[Segment] = []
        if has_system and self.system.place == "user":
            front += self._system_turn(messages[0].content)
        elif not has_system and (self.system.default or (form and form.place == "system")):
            declared = form.declare(tools, bool(self.system.default)) if form and form.place == "system" else []
            segments += self._system_turn(self.system.default, declared)
        if form and form.place == "turn" and (not has_system or self.system.place == "user"):
            segments += form.declare(tools, False)
        if form and form.place == "front":
            front += form.declare(tools, has_system)
        return front

    def _other(self, messages: Sequence[Message], index: int, tools: Tools) -> list[Segment]:
        """A message that is not a plain question or answer."""
        role, content, _, _, channel = messages[index]
        if role == "assistant":
            return self._call_turn(messages, index)
        if role == "tool":
            form = self._tool_form(f"messages[{index}].role")
            check_result(messages, index)
            return form.result(messages, index)
        if channel and role in ("system", "user") and self.tools and self.tools.named:
            return self.tools.named(role, channel, content)
        if role == "user":
            return [*self._user_before, Segment(content, content=True), *self._user_after]
        if role != "system":
            raise RowError(f"messages[{index}].role", role, "system, user, assistant or tool")
        if index and self.system.place != "anywhere":
            raise RowError(f"messages[{index}].role", "system", f"system as the first message only ({self.name})")
        return self._first_system(content, tools) if index == 0 else self._system_turn(content)

    def _first_system(self, content: str, tools: Tools) -> list[Segment]:
        if self.system.place == "user":
            return []  # stands in the user's turn
        form = self.tools if tools else None
        declared = form.declare(tools, True) if form and form.place != "front" else []
        if form and form.place == "turn":
            return [*self._system_turn(content), *declared]
        return self._system_turn(content, declared)

    def _system_turn(self, content: str, declared: Sequence[Segment] = ()) -> list[Segment]:
        said = [Segment(content, content=True)] if content else []
        return [*self._split(self.system.before), *said, *declared, *self._split(self.system.after)]

    def _call_turn(self, messages: Sequence[Message], index: int) -> list[Segment]:
        message = messages[index]
        form = self._tool_form(f"messages[{index}].tool_calls")
        answered = index + 1 < len(messages) and messages[index + 1].role == "tool"
        header = self._split(self.answer.header)
        body = form.call(message, message.loss, calls_before(messages, index))
        end = Segment(form.end or self.answer.end, message.loss, control=True, ends_turn=not answered)
        return [*header, *body, end, *self._split(self.answer.after)]

    def _tool_form(self, field: str) -> ToolForm:
        if self.tools is None:
            able = ", ".join(name for name, other in TEMPLATES.items() if getattr(other, "tools", None))
            raise RowError(field, f"a function call with the template {self.name}", f"one of {able}, which have a form")
        return self.tools

    def _split(self, text: str, trained: bool = False) -> list[Segment]:
        tokens = (*self.required, *(self.tools.tokens if self.tools else ()))
        return split_text(text, tokens, trained)

    @cached_property
    def _opens(self) -> bool:
        return self.system.place == "user" or bool(self.system.default)

    @cached_property
    def _start(self) -> tuple[Segment, ...]:
        return tuple(self._split(self.start))

    @cached_property
    def _user_before(self) -> tuple[Segment, ...]:
        return tuple(self._split(self.user.before))

    @cached_property
    def _user_after(self) -> tuple[Segment, ...]:
        return tuple(self._split(self.user.after))

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


def find_template(name: str, tokenizer: Any) -> Template:
    """The template of a name; `tokenizer`: the one that comes with the tokenizer. Raises ConfigError."""
    if name == "tokenizer":
        from trainer.data.own_template import own_template

        return own_template(tokenizer)
    return TEMPLATES[name]


_IM = ("<|im_start|>", "<|im_end|>")
_CHATML = (
    System("<|im_start|>system\n", "<|im_end|>\n"),
    Around("<|im_start|>user\n", "<|im_end|>\n"),
    Answer("<|im_start|>assistant\n", "<|im_end|>", "\n"),
)

TEMPLATES: dict[str, Template] = {
    # InternLM v1: turn ends are <eoh> and <eoa>; the tutorial's <|eoh|> and <|eoa|> do not exist. <|User|>, <|Bot|> and
    # <|System|> are ordinary text (modeling_internlm.py of internlm-chat-7b; the system line as XTuner and InternLM's
    # own web demo write it).
    "internlm": TurnTemplate(
        "internlm",
        ("<s>", "<eoh>", "<eoa>"),
        ("<eoa>", "</s>"),
        "<s>",
        System("<|System|>:", "\n"),
        Around("<|User|>:", "<eoh>\n"),
        Answer("<|Bot|>:", "<eoa>", "\n"),
    ),
    # InternLM2, 2.5 and 3: chat/chat_format.md of the InternLM repository, chat_template of internlm2_5-7b-chat
    "internlm2": TurnTemplate("internlm2", ("<s>", *_IM), ("<|im_end|>", "</s>"), "<s>", *_CHATML, INTERNLM2),
    "internlm3": TurnTemplate("internlm3", ("<s>", *_IM), ("<|im_end|>", "</s>"), "<s>", *_CHATML, INTERNLM2),
    # OpenAI's chatml.md; it has no beginning-of-sequence token
    "chatml": TurnTemplate("chatml", _IM, ("<|im_end|>",), "", *_CHATML, HERMES),
    # Meta's llama/generation.py (chat_completion): a new <s> at every question
    "llama2": TurnTemplate(
        "llama2",
        ("<s>", "</s>"),
        ("</s>",),
        "",
        System("<<SYS>>\n", "\n<</SYS>>\n\n", "user"),
        Around("<s>[INST] ", " [/INST]"),
        Answer("", "</s>", lead=" ", trail=" "),
    ),
}
