"""Chat formats: a conversation as text segments, each known to be trained or not. Pure.

The strings are those of the model makers: ChatML (OpenAI), Meta's Llama-2 reference code, and the InternLM model
code. InternLM v1's turn ends are `<eoh>` and `<eoa>` (the tutorial's `<|eoh|>` and `<|eoa|>` do not exist).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from trainer.config import TemplateName
from trainer.data.maps import Message


@dataclass(frozen=True)
class Segment:
    """A piece of the rendered text. `control`: the text of one special token, never ordinary text."""

    text: str
    trained: bool = False
    control: bool = False
    ends_turn: bool = False


@dataclass(frozen=True)
class Template:
    """A chat format. `required` are the special tokens it cannot do without; `stop` those that end an answer."""

    name: TemplateName
    render: Callable[[Sequence[Message]], list[Segment]]
    prompt: Callable[[Sequence[Message]], list[Segment]]
    required: tuple[str, ...]
    stop: tuple[str, ...]


def render_text(segments: Sequence[Segment]) -> str:
    """The text of a rendered conversation."""
    return "".join(segment.text for segment in segments)


def _chatml(
    bos: str,
) -> tuple[Callable[[Sequence[Message]], list[Segment]], Callable[[Sequence[Message]], list[Segment]]]:
    start, end = Segment("<|im_start|>", control=True), "<|im_end|>"
    first = [Segment(bos, control=True)] if bos else []

    def render(messages: Sequence[Message]) -> list[Segment]:
        segments = list(first)
        for message in messages:
            trained = message.role == "assistant" and message.loss
            segments += [
                start,
                Segment(f"{message.role}\n"),
                Segment(message.content, trained),
                Segment(end, trained, control=True, ends_turn=message.role == "assistant"),
                Segment("\n"),
            ]
        return segments

    def prompt(messages: Sequence[Message]) -> list[Segment]:
        return [*render(messages), start, Segment("assistant\n")]

    return render, prompt


_INTERNLM_ROLES = {"system": "<|System|>", "user": "<|User|>", "assistant": "<|Bot|>"}


def _internlm(messages: Sequence[Message]) -> list[Segment]:
    segments = [Segment("<s>", control=True)]
    for message in messages:
        trained = message.role == "assistant" and message.loss
        role = _INTERNLM_ROLES.get(message.role, "<|User|>")
        segments += [Segment(f"{role}:"), Segment(message.content, trained)]
        if message.role == "assistant":
            segments.append(Segment("<eoa>", trained, control=True, ends_turn=True))
        elif message.role != "system":
            segments.append(Segment("<eoh>", control=True))
        segments.append(Segment("\n"))
    return segments


def _internlm_prompt(messages: Sequence[Message]) -> list[Segment]:
    return [*_internlm(messages), Segment("<|Bot|>:")]


def _llama2(messages: Sequence[Message]) -> list[Segment]:
    segments: list[Segment] = []
    system = ""
    for message in messages:
        if message.role == "system":
            system += f"<<SYS>>\n{message.content}\n<</SYS>>\n\n"
        elif message.role == "assistant":
            # the blank before the answer is the model's to write: prompts end with [/INST]
            segments += [
                Segment(f" {message.content} ", message.loss),
                Segment("</s>", message.loss, control=True, ends_turn=True),
            ]
        else:
            segments += [Segment("<s>", control=True), Segment(f"[INST] {system}{message.content} [/INST]")]
            system = ""
    return segments


_internlm2_render, _internlm2_prompt = _chatml("<s>")
_chatml_render, _chatml_prompt = _chatml("")
_IM = ("<|im_start|>", "<|im_end|>")

TEMPLATES: dict[TemplateName, Template] = {
    "internlm2": Template("internlm2", _internlm2_render, _internlm2_prompt, ("<s>", *_IM), ("<|im_end|>", "</s>")),
    "internlm": Template("internlm", _internlm, _internlm_prompt, ("<s>", "<eoh>", "<eoa>"), ("<eoa>", "</s>")),
    "llama2": Template("llama2", _llama2, _llama2, ("<s>", "</s>"), ("</s>",)),
    "chatml": Template("chatml", _chatml_render, _chatml_prompt, _IM, ("<|im_end|>",)),
}
