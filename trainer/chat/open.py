"""From what a user names to a model that can be talked with: tokenizer, template, weights, adapter. [I/O]"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from transformers import set_seed

from trainer.chat.adapter import put_adapter, refuse_quantised
from trainer.chat.answer import Answerer, SamplingParameters, context_limit
from trainer.chat.replay import can_replay, replay_steps
from trainer.chat.session import ChatSession
from trainer.chat.target import Target
from trainer.config.job import Data, TrainConfig
from trainer.data.encode import Encoder
from trainer.data.recognise import recognise
from trainer.data.templates import find_template
from trainer.errors import ConfigError
from trainer.families.xcomposer2_shape import MODEL_TYPE as XCOMPOSER2
from trainer.models.hub import checkpoint_folder, read_config
from trainer.models.load import load_model
from trainer.models.tokenizer import load_tokenizer
from trainer.vision.form import find_form

Tell = Callable[[str], None]
DRAWN = {"temperature", "top_p", "top_k", "max_new_tokens"}
HELD = {"template", "quantization", "dtype"}


@dataclass(frozen=True)
class Overrides:
    """What the command line says instead of the run or the defaults; None: nothing."""

    template: str | None = None
    quantization: str | None = None
    dtype: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    max_new_tokens: int | None = None
    repetition_penalty: float = 1.0
    seed: int | None = None


def overridden(target: Target, overrides: Overrides) -> Target:
    """The target with what the command line says."""
    given: dict[str, Any] = {name: value for name, value in vars(overrides).items() if value is not None}
    drawn: dict[str, Any] = {name: given[name] for name in given.keys() & DRAWN}
    changes: dict[str, Any] = {name: given[name] for name in given.keys() & HELD}
    if overrides.template:
        changes["source"] = "--template"
    return replace(target, sampling=target.sampling.model_copy(update=drawn), **changes)


def open_session(
    target: Target,
    overrides: Overrides,
    tell: Tell,
    *,
    shown: str | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> ChatSession:
    """Load it all, and tell what was chosen. `shown`: the option that shows images to the model; answers end when
    `stopped()`. Raises ConfigError."""
    folder = checkpoint_folder(target.path, target.revision_of(target.path))
    raw = read_config(folder)
    if shown and not takes_images(raw):
        raise ConfigError(
            f"{shown}: {target.path} is a text model ({raw.get('model_type')}), allowed: a model that sees images, "
            "such as XComposer2",
        )
    tokenizer = load_tokenizer(target.tokenizer, target.revision_of(target.tokenizer))
    name, source = target.template, target.source
    if name is None:
        name, source = recognise(tokenizer, str(raw.get("model_type", "")), "--template")
    encoder = Encoder(tokenizer, find_template(name, tokenizer), find_form(str(folder), tokenizer))
    adapter = "" if target.adapter is None else f", adapter {target.adapter}"
    tell(f"* model: {target.path}, {_precision(target)}{adapter}")
    tell(f"* template: {name} ({source})")
    model = _weights(target, tell)
    if overrides.seed is not None:
        set_seed(overrides.seed)
    sampling = SamplingParameters(target.sampling, overrides.repetition_penalty)
    answerer = Answerer(encoder, tokenizer, sampling, stopped, context_limit(model.config))
    causal = model if target.adapter is None else model.get_base_model()
    replays = can_replay(causal, target.quantization)
    if replays:
        replay_steps(causal)
    return ChatSession(model, answerer, fixed=replays)


def takes_images(raw: dict[str, Any]) -> bool:
    """Whether a config.json is that of a model that sees."""
    return "vision_config" in raw or raw.get("model_type") == XCOMPOSER2


def _precision(target: Target) -> str:
    return target.dtype if target.quantization == "none" else f"{target.quantization} ({target.dtype})"


def _weights(target: Target, tell: Tell) -> Any:
    if target.adapter is not None:
        refuse_quantised(target.adapter, target.quantization)
    on_cpu = target.on_cpu or not torch.cuda.is_available()
    config = TrainConfig.model_construct(model=target.model, data=Data.model_construct(sources=[]))
    model = load_model(config, torch.device("cpu" if on_cpu else "cuda")).eval()
    return model if target.adapter is None else put_adapter(model, target.adapter, target.path, tell)
