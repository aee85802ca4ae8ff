"""A loaded model that is talked with: one answer at a time, as it is written, or a batch of them."""

import time
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

from trainer.chat.answer import Answer, Answerer, batch_inputs
from trainer.chat.cache import PromptCache
from trainer.data.calls import begins_call, trimmed, visible, writes_calls_as_text
from trainer.data.message import Message
from trainer.data.segment import Segment
from trainer.data.text_stream import TextStream
from trainer.data.tools import Tools
from trainer.data.turns import Template, TurnTemplate
from trainer.vision.prompt import prompt_inputs

Show = Callable[[str], None]


class Spoken(NamedTuple):
    """An answer. Tokens of the prompt, of these not computed again, and of the answer; seconds to the first token, and
    to the last."""

    message: Message
    ended: Literal["stop", "length", "told"]
    prompt: int
    cached: int
    tokens: int
    first_s: float
    total_s: float

    def stats(self) -> str:
        """For people."""
        after = max(self.total_s - self.first_s, 1e-9)
        speed = f", {(self.tokens - 1) / after:.1f} tok/s" if self.tokens > 1 else ""
        cached = f" ({self.cached} of them cached)" if self.cached else ""
        return f"{self.tokens} tokens{speed}, the first after {self.first_s:.2f} s; prompt {self.prompt} tokens{cached}"


class ChatSession:
    """Speaks for one model. An answer that was told to end is what there is of it. `fixed`: keys and values lie in one
    place (trainer.chat.replay)."""

    def __init__(self, model: Any, answerer: Answerer, *, fixed: bool = False) -> None:
        self.model, self.answerer = model, answerer
        self.encoder, self.template = answerer.encoder, answerer.encoder.template
        self._cache = PromptCache(model.config, fixed=fixed)

    def say(
        self, messages: Sequence[Message], tools: Tools = (), images: Sequence[Any] = (), show: Show = lambda text: None
    ) -> Spoken:
        """The answer to a conversation; `show` gets the text for readers in pieces, as it comes. Raises RowError for
        what the template cannot write, ConfigError for a prompt that is too long."""
        start = time.monotonic()
        segments = self.template.prompt(messages, tools)
        inputs = prompt_inputs(self.model, self.encoder, segments, images)
        before = inputs["input_ids"][0].tolist() if "input_ids" in inputs else []
        ear = _Ear(self.answerer, before, show, quiet=bool(tools) and writes_calls_as_text(self.template))
        cache, cached = (None, 0) if images else self._cache.take(before, self.answerer.room(len(before)))
        answer = self._answer(inputs, cache, ear)
        if cache is not None and answer.ended != "told":
            self._cache.keep([*before, *ear.ids])
        message = self.answerer.message(before, answer.ids, has_tools=bool(tools))
        ear.finish(message)
        end = time.monotonic()
        first = ear.first if ear.first is not None else end
        prompt = inputs["attention_mask"].shape[1]
        return Spoken(message, answer.ended, prompt, cached, len(ear.ids), first - start, end - start)

    def ask(self, messages: Sequence[Message], images: Sequence[Any] = ()) -> str:
        """The text of the answer alone."""
        return self.say(messages, images=images).message.content

    def prompt_ids(self, messages: Sequence[Message], tools: Tools) -> list[int]:
        """A prompt's ids. Raises RowError, or ConfigError for one that is too long."""
        ids = self.encoder.prompt_ids(self.template.prompt(messages, tools))
        self.answerer.room(len(ids))
        return ids

    def say_all(self, prompts: Sequence[Sequence[int]], has_tools: Sequence[bool]) -> list[Message]:
        """The answers to B prompts at once."""
        answers = self.answerer.generate(self.model, batch_inputs(self.model, prompts, self.answerer.pad))
        return [
            self.answerer.message(before, answer.ids, has_tools=has)
            for before, answer, has in zip(prompts, answers, has_tools, strict=True)
        ]

    def _answer(self, inputs: dict[str, Any], cache: Any, ear: "_Ear") -> Answer:
        """A second interrupt ends even a long prompt's computation."""
        try:
            (answer,) = self.answerer.generate(self.model, inputs, cache=cache, heard=ear.hear)
            return answer
        except KeyboardInterrupt:
            return Answer(self.answerer.read(ear.ids).ids, "told")


class _Ear:
    """Hears ids and shows their text: not what the format writes around every answer, and nothing of a call. `quiet`:
    only the whole answer shows what it is."""

    def __init__(self, answerer: Answerer, before: Sequence[int], show: Show, *, quiet: bool) -> None:
        self.ids: list[int] = []
        self.first: float | None = None
        self._answerer, self._show, self._quiet = answerer, show, quiet
        self._stream = TextStream(answerer.tokenizer, before)
        self._template: Template = answerer.encoder.template
        self._text = self._shown = ""

    def hear(self, number: int) -> None:
        """One id."""
        self.first = self.first or time.monotonic()
        self.ids.append(number)
        if number not in self._answerer.stops:
            for segment in self._stream.put(number):
                self._take(segment)

    def finish(self, message: Message) -> None:
        """The rest of the text, once the answer is known."""
        self._out(message.content)

    def _take(self, segment: Segment) -> None:
        self._quiet = self._quiet or begins_call(self._template, segment)
        self._text += visible([segment], self._answerer.hidden)
        if not self._quiet:
            self._out(self._certain())

    def _certain(self) -> str:
        """What will be shown of the text however it goes on: a trail may turn out to be text, one blank as it is."""
        lead = self._template.answer.lead if isinstance(self._template, TurnTemplate) else ""
        return trimmed(self._template, self._text) if len(self._text) >= len(lead) else ""

    def _out(self, text: str) -> None:
        if text.startswith(self._shown) and text != self._shown:
            self._show(text[len(self._shown) :])
            self._shown = text
