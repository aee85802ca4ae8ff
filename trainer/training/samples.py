"""The same questions before, during and after training, and how many are answered as taught."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.chat.answer import Answer, Answerer, SamplingParameters, batch_inputs
from trainer.config.job import SamplePrompt, Sampling
from trainer.data.encode import Encoder
from trainer.data.message import Message
from trainer.vision.splice import place_images

AT_ONCE = 4  # prompts: training has left little of a GPU's memory for their keys and values
LONGEST = 200  # tokens of an answer, where the job does not say it: training waits meanwhile


@dataclass(frozen=True)
class Sample:
    """One answer. `step` 0 is before training."""

    step: int
    prompt: str
    answer: str
    expect: str | None

    @property
    def exact(self) -> bool:
        """Whether the answer is word for word as taught."""
        return self.expect is not None and self.answer.strip() == self.expect.strip()


class Sampler:
    """Answers prompts with a model, a few at a time; the template and tokenizer are those of training. Answers end when
    `stopped()`."""

    def __init__(
        self,
        encoder: Encoder,
        tokenizer: Any,
        sampling: Sampling,
        prompts: list[SamplePrompt],
        stopped: Callable[[], bool],
    ) -> None:
        self.encoder, self.prompts = encoder, prompts
        shorter = sampling.model_copy(update={"max_new_tokens": sampling.max_new_tokens or LONGEST})
        self.answerer = Answerer(encoder, tokenizer, SamplingParameters(shorter), stopped)

    @torch.no_grad()
    def answer_all(
        self,
        model: Any,
        step: int,
        tell: Callable[[str], None],
        before: list[Sample] | None = None,
        *,
        synced: bool = False,
    ) -> list[Sample]:
        """The answers in the order of the prompts; each is told as soon as it is complete, beside that of `before`.
        `synced`: all ranks take part (ZeRO-3 splits the weights)."""
        if self.prompts:
            number = "1 sample prompt" if len(self.prompts) == 1 else f"{len(self.prompts)} sample prompts"
            tell(f"answering {number} {_when(step, last=before is not None)}")

        def ended(place: int, sample: Sample) -> None:
            lines = compared(before[place], sample) if before else [f"Q: {sample.prompt}", f"   {sample.answer}"]
            tell("\n".join(lines))

        training = model.training
        model.eval()
        try:
            batches = [self._answer_some(model, step, first, ended, synced=synced)
                       for first in range(0, len(self.prompts), AT_ONCE)]  # fmt: skip
            return [sample for batch in batches for sample in batch]
        finally:
            model.train(training)

    def _answer_some(
        self, model: Any, step: int, first: int, ended: Callable[[int, Sample], None], *, synced: bool
    ) -> list[Sample]:
        prompts = self.prompts[first : first + AT_ONCE]
        encoded = [self._ids(prompt) for prompt in prompts]

        def sample(place: int, answer: Answer) -> Sample:
            text = self.answerer.text(encoded[place], answer.ids).strip()
            return Sample(step, prompts[place].prompt, text, prompts[place].expect)

        def complete(place: int, answer: Answer) -> None:
            if answer.ended != "told":
                ended(first + place, sample(place, answer))

        inputs = batch_inputs(model, encoded, self.answerer.pad)
        answers = self.answerer.generate(model, inputs, ended=complete, synced=synced)
        return [sample(place, answer) for place, answer in enumerate(answers)]

    def _ids(self, prompt: SamplePrompt) -> list[int]:
        messages = [Message("system", prompt.system)] if prompt.system else []
        segments = self.encoder.template.prompt([*messages, Message("user", prompt.prompt)])
        return self.encoder.prompt_ids(place_images(segments, 0))


def append_samples(samples: list[Sample], path: Path) -> None:
    """One JSON object an answer."""
    with path.open("a", encoding="utf-8") as file:
        for sample in samples:
            file.write(json.dumps({**asdict(sample), "exact": sample.exact}, ensure_ascii=False) + "\n")


def _when(step: int, *, last: bool) -> str:
    return "after training" if last else f"at step {step}" if step else "before training"


def compared(old: Sample, new: Sample) -> list[str]:
    """One question with both answers, for people."""
    mark = "  (as taught)" if new.exact else ""
    return [f"Q: {new.prompt}", f"   before: {old.answer}", f"   after:  {new.answer}{mark}"]


def score(before: list[Sample], after: list[Sample]) -> list[str]:
    """How many are answered as taught, in a line; none when no prompt says what was."""
    asked = sum(sample.expect is not None for sample in after)
    was, now = (sum(sample.exact for sample in samples) for samples in (before, after))
    return [f"score: {was}/{asked} answered as taught before, {now}/{asked} after"] if asked else []


def comparison(before: list[Sample], after: list[Sample]) -> list[str]:
    """All questions with both answers, and the score."""
    lines = [line for old, new in zip(before, after, strict=True) for line in compared(old, new)]
    return [*lines, *score(before, after)]
