"""A model's answers: the one way from a conversation to what the model writes, for the samples of training, `launch
chat` and `launch sample`. The prompt is made by training's template and encoder, and an answer ends at every end token
of the format.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from transformers import StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from trainer.config.job import Sampling
from trainer.data.calls import read_answer, trimmed, visible
from trainer.data.encode import Encoder
from trainer.data.message import Message
from trainer.data.text_stream import read_segments
from trainer.errors import ConfigError

LONGEST_ANSWER = 600  # tokens, where the sampling parameters do not say it


@dataclass(frozen=True)
class SamplingParameters:
    """How tokens are drawn. `repetition_penalty` is CTRL's (arXiv:1909.05858): 1 changes nothing."""

    sampling: Sampling
    repetition_penalty: float = 1.0

    def arguments(self) -> dict[str, Any]:
        """For transformers' `generate`."""
        sampling, penalty = self.sampling, {"repetition_penalty": self.repetition_penalty}
        if sampling.temperature == 0:
            return {"do_sample": False, **penalty}
        drawn = {"temperature": sampling.temperature, "top_p": sampling.top_p, "top_k": sampling.top_k}
        return {"do_sample": True, **drawn, **penalty}


class Answer(NamedTuple):
    """`ids` are without the end token. `ended`: by an end token, at the greatest length, or because it was told to."""

    ids: list[int]
    ended: Literal["stop", "length", "told"]


class Answerer:
    """Answers in one template. `stopped()` ends them early; `limit`: the tokens that prompt and answer may have."""

    def __init__(
        self, encoder: Encoder, tokenizer: Any, sampling: SamplingParameters, stopped: Callable[[], bool],
        limit: int | None = None,
    ) -> None:
        self.encoder, self.tokenizer, self.sampling = encoder, tokenizer, sampling
        self.stopped, self.limit = stopped, limit
        self.stops = stop_ids(tokenizer, encoder.template.stop)
        self.hidden = frozenset(token.content for token in tokenizer.added_tokens_decoder.values() if token.special)
        self.pad = self.stops[0] if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)

    @torch.no_grad()
    def generate(
        self,
        model: Any,
        inputs: dict[str, Any],
        *,
        cache: Any = None,
        heard: Callable[[int], None] | None = None,
        ended: Callable[[int, Answer], None] | None = None,
        synced: bool = False,
    ) -> list[Answer]:
        """One answer for each of B prompts. `inputs` as `prompt_inputs` or `batch_inputs` gives them; `cache`: keys and
        values of the prompt's first tokens, which gets those of the rest; `heard` gets every id of a single answer
        at once; `ended` gets each answer with its place among the B as soon as it is complete; `synced`: all ranks take
        part (ZeRO-3 splits the weights). Raises ConfigError for a prompt that is too long."""
        start = inputs["input_ids"].shape[1] if "input_ids" in inputs else 0
        ends = _Ends(self, start, ended) if ended else None
        out = model.generate(
            **inputs,
            max_new_tokens=self.room(_length(inputs)),
            eos_token_id=self.stops,
            pad_token_id=self.pad,
            synced_gpus=synced,
            stopping_criteria=StoppingCriteriaList([ends or self.cut]),
            streamer=_Ear(heard) if heard else None,
            use_cache=True,
            disable_compile=True,  # of a fixed cache, which takes longer than most chats
            **({} if cache is None else {"past_key_values": cache}),
            **self.sampling.arguments(),
        )
        answers = [self.read(ids) for ids in out[:, start:].tolist()]
        if ends:
            ends.rest(answers)
        return answers

    def read(self, ids: Sequence[int]) -> Answer:
        """The answer in what was generated: up to its end token, behind which a batch has padding."""
        ends = [place for place, number in enumerate(ids) if number in self.stops]
        if ends:
            return Answer(list(ids[: ends[0]]), "stop")
        return Answer(list(ids), "told" if self.stopped() else "length")

    def text(self, before: Sequence[int], ids: Sequence[int]) -> str:
        """What a reader sees of an answer to the prompt `before`."""
        segments = read_segments(self.tokenizer, before, ids)
        return trimmed(self.encoder.template, visible(segments, self.hidden))

    def message(self, before: Sequence[int], ids: Sequence[int], *, has_tools: bool) -> Message:
        """An answer to the prompt `before` as training would write it: text, or calls of functions."""
        segments = read_segments(self.tokenizer, before, ids)
        return read_answer(self.encoder.template, segments, self.hidden, has_tools=has_tools)

    def room(self, prompt: int) -> int:
        """The most tokens of an answer to a prompt of so many. Raises ConfigError when it has none."""
        wanted = self.sampling.sampling.max_new_tokens or LONGEST_ANSWER
        if self.limit is None:
            return wanted
        if prompt >= self.limit:
            raise ConfigError(
                f"prompt: got {prompt} tokens, allowed: {self.limit - 1}, one less than the model takes "
                "(max_position_embeddings)",
                "shorten it, or take turns back",
            )
        return min(wanted, self.limit - prompt)

    def cut(self, ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """For each of B sequences whether it ends here: bool [B]."""
        return torch.full((ids.shape[0],), self.stopped(), device=ids.device)


def batch_inputs(model: Any, prompts: Sequence[Sequence[int]], pad: int) -> dict[str, Any]:
    """What `generate` takes for B prompts: input_ids and attention_mask, int64 [B, T], padded on the left."""
    width, device = max(map(len, prompts)), next(model.parameters()).device
    gaps = [width - len(ids) for ids in prompts]
    ids = [[pad] * gap + list(ids) for gap, ids in zip(gaps, prompts, strict=True)]
    mask = [[0] * gap + [1] * (width - gap) for gap in gaps]
    return {"input_ids": torch.tensor(ids, device=device), "attention_mask": torch.tensor(mask, device=device)}


def stop_ids(tokenizer: Any, stop: tuple[str, ...]) -> list[int]:
    """Ids of the tokens that end an answer, those that the tokenizer knows, in a fixed order."""
    known = tokenizer.get_vocab()
    return sorted({known[token] for token in stop if token in known} | {tokenizer.eos_token_id})


def context_limit(config: Any) -> int | None:
    """The tokens that a model takes; None when its rotary base grows with the length (dynamic NTK)."""
    text = config.get_text_config()
    limit = getattr(text, "max_position_embeddings", None)
    return None if limit is None or "dynamic" in rope_types(text) else int(limit)


def rope_types(config: Any) -> set[str]:
    """Kinds of rotary embedding in a text model's config: one, or one for each kind of layer."""
    rope = getattr(config, "rope_parameters", None) or {}
    inner = [value for value in rope.values() if isinstance(value, dict)]
    return {str(one.get("rope_type", "default")) for one in (inner or [rope])}


def _length(inputs: dict[str, Any]) -> int:
    """Tokens of the longest prompt."""
    return int(inputs["attention_mask"].shape[1])


class _Ear(BaseStreamer):  # type: ignore[misc]  # transformers has no types
    """Passes on ids as they are generated; the first that come are the prompt's."""

    def __init__(self, heard: Callable[[int], None]) -> None:
        self._heard, self._in_prompt = heard, True

    def put(self, value: torch.Tensor) -> None:
        """The prompt [1, T], then one id after the other [1]."""
        if not self._in_prompt:
            self._heard(int(value.item()))
        self._in_prompt = False

    def end(self) -> None:
        """Nothing waits."""


class _Ends:
    """A stopping criterion that passes on each answer of a batch when its end token comes. `start`: where the answers
    begin."""

    def __init__(self, answerer: Answerer, start: int, ended: Callable[[int, Answer], None]) -> None:
        self._answerer, self._start, self._ended = answerer, start, ended
        self._done: set[int] = set()

    def __call__(self, ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        """For each of B sequences [B, T] whether it ends here, as Answerer.cut: bool [B]."""
        for place, last in enumerate(ids[:, -1].tolist()):
            if last in self._answerer.stops and place not in self._done:
                self._pass(place, self._answerer.read(ids[place, self._start :].tolist()))
        return self._answerer.cut(ids, scores)

    def rest(self, answers: Sequence[Answer]) -> None:
        """Pass on those that ended without an end token."""
        for place, answer in enumerate(answers):
            if place not in self._done:
                self._pass(place, answer)

    def _pass(self, place: int, answer: Answer) -> None:
        self._done.add(place)
        self._ended(place, answer)
