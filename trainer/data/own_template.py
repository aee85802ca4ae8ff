"""The tokenizer's own Jinja as a template: what servers render is what is trained on.

Jinja gives one text and does not say what is whose, so two things are found out here:
- Which text is an answer: the conversation before it, rendered with the generation prompt, is the start of the whole
  text; the answer goes from there to the control token that ends it. Templates with {% generation %} tags say it
  themselves.
- Which control tokens are the template's: those in a message are rendered as private-use characters, and put back as
  ordinary text afterwards.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, NamedTuple

from trainer.data.control import MODEL_MARKS, control_ids
from trainer.data.message import Conversation, Message, RowError
from trainer.data.segment import Segment, render_text
from trainer.data.tools import Tools
from trainer.data.turns import Template
from trainer.data.written import check_answer, holds, thoughts
from trainer.errors import ConfigError

WRITTEN_FIELDS = ("role", "content", "tool_calls", "tool_call_id")  # what is in the text is looked at elsewhere
# what a template that meets an unexpected conversation fails with, besides Jinja's own errors
JINJA_BUGS = (TypeError, ValueError, AttributeError, LookupError)
NONE = re.compile("(?!)")  # matches nowhere


class Span(NamedTuple):
    """An answer in the rendered text: characters `start` to `end`, which is behind its end token."""

    start: int
    end: int
    trained: bool
    ends_turn: bool


@dataclass(frozen=True)
class OwnTemplate(Template):
    """`control` finds the tokens that no message can write; `required` are those that the template writes. `begin` is
    the token that the tokenizer puts before every text, if any."""

    source: str
    variables: Mapping[str, str] = field(repr=False)
    control: re.Pattern[str] = field(repr=False, default=NONE)
    begin: str = ""

    def render(self, messages: Sequence[Message], tools: Tools = ()) -> list[Segment]:
        """`content` is set only where a message holds the text of a control token: elsewhere Jinja does not tell."""
        chat, schemas, marks = self._marked(messages, tools)
        text, generated = self._text(chat, schemas, tracked=True)
        spans = (
            self._generated_spans(text, generated, messages)
            if generated
            else self._prefix_spans(text, chat, schemas, messages)
        )
        answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
        for index, span in zip(answers, spans, strict=True):
            check_answer(text[span.start : span.end], chat[index], index)
        return self._segments(text, spans, marks)

    def prompt(self, messages: Sequence[Message], tools: Tools = ()) -> list[Segment]:
        chat, schemas, marks = self._marked(messages, tools)
        return self._segments(self._text(chat, schemas, asks=True)[0], [], marks)

    def unwritten(self, conversation: Conversation, segments: Sequence[Segment]) -> list[str]:
        """Fields of messages as the row names them, "tools", and the content of roles whose messages are not there."""
        text = render_text(segments)
        names = [
            f"content of {message.role}"
            for message in conversation.messages
            if message.role != "assistant" and not holds(text, message.content)
        ]
        if not all(holds(text, thoughts(message.content)) for message in conversation.messages):
            names.append("thoughts before </think>")
        return list(dict.fromkeys([*names, *self._without_effect(conversation, text)]))

    def _without_effect(self, conversation: Conversation, text: str) -> Iterator[str]:
        """Functions, and fields beside role, content and calls, without which the text is the same, or which it does
        not hold."""
        chat = openai_messages(conversation.messages)
        fields = dict.fromkeys(key for message in chat for key in message if key not in WRITTEN_FIELDS)
        if not fields and not conversation.tools:
            return
        schemas = [{"type": "function", "function": tool} for tool in conversation.tools] or None
        whole = self._text(chat, schemas)[0]
        if schemas and self._text(chat, None)[0] == whole:
            yield "tools"
        for name in fields:
            without = [{key: value for key, value in message.items() if key != name} for message in chat]
            said = _strings([message.get(name) for message in chat])
            if self._text(without, schemas)[0] == whole or not all(holds(text, part) for part in said):
                yield name

    def jinja(self) -> str:
        return self.source

    def written(self, tokenizer: Any) -> tuple[str, ...]:
        """The added tokens that stand around messages: none of these may come out of one. Line ends and the model's own
        marks may."""
        chat = openai_messages([Message("user", "a"), Message("assistant", "b"), Message("user", "c")])
        try:
            text, _ = self._text(chat, None)
        except RowError:
            return ()
        added, ids = tokenizer.added_tokens_decoder, tokenizer(text, add_special_tokens=False).input_ids
        found = dict.fromkeys(added[number].content for number in ids if number in added)
        return tuple(token for token in found if token.strip() and token not in MODEL_MARKS)

    def _text(
        self, chat: list[dict[str, Any]], schemas: Any, *, asks: bool = False, tracked: bool = False
    ) -> tuple[str, list[tuple[int, int]]]:
        """The text, and the spans of {% generation %} when they are `tracked`. `asks`: with a generation prompt."""
        from jinja2.exceptions import TemplateError
        from transformers.utils.chat_template_utils import render_jinja_template

        tracked = tracked and bool(re.search(r"\{%-?\s*generation\s*-?%\}", self.source))
        try:
            texts, spans = render_jinja_template(
                [chat], tools=schemas, chat_template=self.source, return_assistant_tokens_mask=tracked,
                add_generation_prompt=asks, **self.variables,
            )  # fmt: skip
        except (TemplateError, *JINJA_BUGS) as error:
            said = str(error) or type(error).__name__
            raise RowError("messages", f"what the tokenizer's template refuses: {said}", "what it takes") from error
        return texts[0], spans[0] if tracked else []

    def _marked(
        self, messages: Sequence[Message], tools: Tools
    ) -> tuple[list[dict[str, Any]], list[dict[str, Any]] | None, dict[str, str]]:
        """The conversation as apply_chat_template takes it, with control tokens replaced; {mark: token}."""
        chat = openai_messages(messages)
        schemas = [{"type": "function", "function": tool} for tool in tools] or None
        texts = list(_strings([chat, schemas]))
        held = {token for text in texts for token in self.control.findall(text)}
        if not held:
            return chat, schemas, {}
        written = set("".join(texts))
        free = (chr(code) for code in range(0xF0000, 0xFFFFE) if chr(code) not in written)
        marks = dict(zip(free, sorted(held, key=len, reverse=True), strict=False))
        marked = _replaced(chat, marks), _replaced(schemas, marks)
        if _restored(self._text(*marked)[0], marks) != self._text(chat, schemas)[0]:
            raise RowError("messages", "special tokens that change what the tokenizer's template writes", "none there")
        return *marked, marks

    def _generated_spans(self, text: str, generated: list[tuple[int, int]], messages: Sequence[Message]) -> list[Span]:
        """One {% generation %} block for each answer; the end token belongs to it even where it stands behind."""
        answers = [index for index, message in enumerate(messages) if message.role == "assistant"]
        if len(generated) != len(answers):
            got = f"{len(generated)} generation blocks for {len(answers)} answers"
            raise RowError("messages", got, "a template with one for each answer")
        spans = []
        for index, (start, end) in zip(answers, generated, strict=True):
            closed = end > start and self._last_end(text, start, end) == end
            behind = None if closed else self.control.match(text, end)
            close = behind.end() if behind else end
            spans.append(Span(start, close, messages[index].loss, not _answered(messages, index)))
        return spans

    def _prefix_spans(
        self, text: str, chat: list[dict[str, Any]], schemas: Any, messages: Sequence[Message]
    ) -> list[Span]:
        spans = []
        for index, message in enumerate(messages):
            if message.role == "assistant":
                asked = self._text(chat[:index], schemas, asks=True)[0] if index else ""
                if not asked or not text.startswith(asked):
                    raise self._unstable(index)
                end = self._answer_end(text, len(asked), chat[: index + 1], chat[index + 1 :], schemas)
                if end is None:
                    raise self._unstable(index)
                spans.append(Span(len(asked), end, message.loss, not _answered(messages, index)))
        return spans

    def _answer_end(
        self, text: str, start: int, upto: list[dict[str, Any]], following: list[dict[str, Any]], schemas: Any
    ) -> int | None:
        """Where the end token of the last answer of `upto` ends. What a template writes behind a whole conversation
        (Phi-3: one more end) is left out by a look at the conversation as it goes on."""
        ended = self._text(upto, schemas)[0] if following else text
        header = self._next_header(ended, start)
        if header is not None:
            return header if text.startswith(ended[:header]) else None
        going_on = text if following else self._going_on(upto, schemas)
        # where older answers are written in another way (thoughts left out), a last one ends with the text
        for common in [_common(ended, going_on)] if following else [_common(ended, going_on), len(ended)]:
            end = self._last_end(ended, start, common)
            if end > start and self._only_ends(ended[end:]) and text.startswith(ended[:end]):
                return end
        return None

    def _next_header(self, ended: str, start: int) -> int | None:
        """Where the header of the next answer begins behind this one; None where there is none: it ends the prompt to
        this answer, too."""
        if not self._asks_always:
            return None
        ends = [match.end() for match in self.control.finditer(ended, start)]
        return next((end for end in ends if ended[end:].strip() and ended[:start].endswith(ended[end:])), None)

    @cached_property
    def _asks_always(self) -> bool:
        """Whether what asks for an answer stands behind every conversation (Llama 3)."""
        chat = openai_messages([Message("user", "a"), Message("assistant", "b")])
        try:
            return self._text(chat, None)[0] == self._text(chat, None, asks=True)[0]
        except RowError:
            return False

    def _going_on(self, chat: list[dict[str, Any]], schemas: Any) -> str:
        try:
            return self._text([*chat, {"role": "user", "content": "-"}], schemas)[0]
        except RowError:
            return ""

    def _last_end(self, text: str, start: int, end: int) -> int:
        """The end of the last control token in a part of the text, or `start`."""
        found = [match.end() for match in self.control.finditer(text, start, end)]
        return found[-1] if found else start

    def _only_ends(self, text: str) -> bool:
        return not self.control.sub("", text).strip()

    def _unstable(self, index: int) -> RowError:
        return RowError(
            f"messages[{index}]",
            "an answer that the tokenizer's template does not write behind its own prompt, closed by a special token",
            "another model.chat_template, or {% generation %} tags in this one",
        )

    def _segments(self, text: str, spans: Sequence[Span], marks: dict[str, str]) -> list[Segment]:
        parts = list(self._parts(text, spans, marks))
        if self.begin and not any(part.control and part.text == self.begin for part in parts):
            parts.insert(0, Segment(self.begin, control=True))
        return parts

    def _parts(self, text: str, spans: Sequence[Span], marks: dict[str, str]) -> Iterator[Segment]:
        """The text cut at the borders of spans and around control tokens."""
        place = 0
        for start, end, trained, ends_turn in [*spans, Span(len(text), len(text), False, False)]:
            yield from self._cut(text[place:start], False, marks)
            answer = list(self._cut(text[start:end], trained, marks))
            if answer:
                answer[-1] = answer[-1]._replace(ends_turn=ends_turn)
            yield from answer
            place = end

    def _cut(self, text: str, trained: bool, marks: dict[str, str]) -> Iterator[Segment]:
        place = 0
        for match in self.control.finditer(text):
            yield from self._plain(text[place : match.start()], trained, marks)
            yield Segment(match.group(), trained, control=True)
            place = match.end()
        yield from self._plain(text[place:], trained, marks)

    def _plain(self, text: str, trained: bool, marks: dict[str, str]) -> Iterator[Segment]:
        if text:
            yield Segment(_restored(text, marks), trained, content=any(mark in text for mark in marks))


def own_template(tokenizer: Any) -> OwnTemplate:
    """The tokenizer's own chat template. Raises ConfigError when it has none."""
    try:
        source = tokenizer.get_chat_template()
    except ValueError as error:
        raise ConfigError(
            "model.chat_template: got tokenizer, but the tokenizer has no chat template",
            "choose a template by name: internlm2, chatml, llama3, ...",
        ) from error
    template = OwnTemplate("tokenizer", (), (), source, dict(tokenizer.special_tokens_map), begin=_begin(tokenizer))
    written = template.written(tokenizer)
    longest_first = sorted(control_ids(tokenizer, written), key=len, reverse=True)
    control = re.compile("|".join(map(re.escape, longest_first))) if longest_first else NONE
    template = replace(template, required=written, control=control)
    return replace(template, stop=_stop(template, tokenizer))


def openai_messages(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """As OpenAI's API and apply_chat_template take them; calls have ids of nine characters, as Mistral's must."""
    chat: list[dict[str, Any]] = []
    calls = results = 0
    for role, content, _, called, channel, extra in messages:
        message: dict[str, Any] = {**extra, "role": role, "content": content}
        if channel:
            message["name"] = channel
        if called:
            message["tool_calls"] = [
                {
                    "id": f"{calls + place:09}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for place, call in enumerate(called)
            ]
            calls += len(called)
        if role == "tool":
            message["tool_call_id"] = f"{results:09}"
            results += 1
        chat.append(message)
    return chat


def _begin(tokenizer: Any) -> str:
    ids = tokenizer("a").input_ids
    return str(tokenizer.bos_token) if ids and ids[0] == tokenizer.bos_token_id else ""


def _stop(template: OwnTemplate, tokenizer: Any) -> tuple[str, ...]:
    """What ends an answer: the tokenizer's end token, and the one that the template writes."""
    eos = [tokenizer.eos_token] if tokenizer.eos_token else []
    try:
        segments = template.render([Message("user", "a"), Message("assistant", "b")])
    except RowError:
        return tuple(eos)
    ends = [segment.text for segment in segments if segment.ends_turn and segment.control]
    return tuple(dict.fromkeys([*ends, *eos]))


def _answered(messages: Sequence[Message], index: int) -> bool:
    return index + 1 < len(messages) and messages[index + 1].role == "tool"


def _common(first: str, second: str) -> int:
    """The number of characters that two texts have in common from their start."""
    if second.startswith(first):
        return len(first)
    return next((place for place, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), len(second))


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _strings(item)


def _replaced(value: Any, marks: dict[str, str]) -> Any:
    if isinstance(value, str):
        for mark, token in marks.items():
            value = value.replace(token, mark)
        return value
    if isinstance(value, dict):
        return {key: _replaced(item, marks) for key, item in value.items()}
    return [_replaced(item, marks) for item in value] if isinstance(value, list | tuple) else value


def _restored(text: str, marks: dict[str, str]) -> str:
    for mark, token in marks.items():
        text = text.replace(mark, token)
    return text
