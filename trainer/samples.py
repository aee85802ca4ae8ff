"""The same questions before, during and after training, and how many are answered as taught."""

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from trainer.answer import Answerer, Drawing
from trainer.config import SamplePrompt, Sampling
from trainer.data.encode import Encoder
from trainer.data.message import Message
from trainer.vision.prompt import prompt_inputs


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
    """Answers prompts with a model; the template and tokenizer are those of training. Answers end when `stopped()`."""

    def __init__(
        self,
        encoder: Encoder,
        tokenizer: Any,
        sampling: Sampling,
        prompts: list[SamplePrompt],
        stopped: Callable[[], bool],
    ) -> None:
        self.encoder, self.prompts = encoder, prompts
        self.answerer = Answerer(encoder, tokenizer, Drawing(sampling), stopped)

    @torch.no_grad()
    def answer_all(self, model: Any, step: int, synced: bool = False) -> list[Sample]:
        """`synced`: all ranks take part (ZeRO-3 splits the weights)."""
        training = model.training
        model.eval()
        try:
            return [
                Sample(step, prompt.prompt, self._answer(model, prompt, synced), prompt.expect)
                for prompt in self.prompts
            ]
        finally:
            model.train(training)

    def _answer(self, model: Any, prompt: SamplePrompt, synced: bool) -> str:
        messages = [Message("system", prompt.system)] if prompt.system else []
        segments = self.encoder.template.prompt([*messages, Message("user", prompt.prompt)])
        inputs = prompt_inputs(model, self.encoder, segments, ())
        (answer,) = self.answerer.generate(model, inputs, synced=synced)
        return self.answerer.text(inputs["input_ids"][0].tolist(), answer.ids).strip()


def append_samples(samples: list[Sample], path: Path) -> None:
    """One JSON object an answer."""
    with path.open("a", encoding="utf-8") as file:
        for sample in samples:
            file.write(json.dumps({**asdict(sample), "exact": sample.exact}, ensure_ascii=False) + "\n")


def comparison(before: list[Sample], after: list[Sample]) -> list[str]:
    """The questions with both answers, and the score, for people."""
    lines = []
    for old, new in zip(before, after, strict=True):
        mark = "  (as taught)" if new.exact else ""
        lines += [f"Q: {new.prompt}", f"   before: {old.answer}", f"   after:  {new.answer}{mark}"]
    asked = [sample for sample in after if sample.expect is not None]
    if asked:
        was, now = (sum(sample.exact for sample in samples) for samples in (before, asked))
        lines.append(f"score: {was}/{len(asked)} answered as taught before, {now}/{len(asked)} after")
    return lines
