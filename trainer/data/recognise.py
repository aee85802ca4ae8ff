"""The template of a model for which none is named, by what its tokenizer's own chat_template writes and by its family:
the one place where it is chosen, for training, `launch data` and `launch chat`."""

from collections.abc import Iterator, Sequence
from typing import Any, Literal, NamedTuple

from jinja2.exceptions import TemplateError

from trainer.config.job import TrainConfig
from trainer.data.message import Message, RowError
from trainer.data.own_template import JINJA_BUGS, openai_messages, own_template
from trainer.data.segment import render_text
from trainer.data.templates import TEMPLATES
from trainer.data.turns import Template, TurnTemplate
from trainer.errors import ConfigError
from trainer.families.registry import CARDS, chat_card_of
from trainer.models.hub import read_model_type

# of model types without a card: a guess, for a tokenizer without chat_template
GUESSES = {
    "chatglm": "chatglm3",
    "mixtral": "mistral",
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), "deepseek"),
}
_TURNS = [Message("user", "One?"), Message("assistant", "1"), Message("user", "Two?")]
# a served model sees prompts and nothing else; some makers' templates refuse the last, with its system text
PROBES = (_TURNS[:1], _TURNS, [Message("system", "Be brief."), *_TURNS])


class Choice(NamedTuple):
    """A template by its name, and why it was chosen."""

    name: str
    reason: str

    def line(self) -> str:
        """For people."""
        return f"template: {self.name} ({self.reason})"


def with_template(config: TrainConfig, tokenizer: Any | None) -> tuple[TrainConfig, str]:
    """The config with its template by name, and what to print of the choice, nothing where the job names it.
    `tokenizer`: None for a model that is yet to be made. Raises ConfigError when there is no template for the model, or
    when the tokenizer lacks tokens of the job's one."""
    model = config.model
    if model.chat_template is not None:
        if tokenizer is not None:
            require_tokens(tokenizer, model.chat_template, str(model.path), model.revision)
        return config, ""
    if tokenizer is None:
        choice = Choice(str(CARDS[str(model.init)].template), f"that of {model.init}'s chat models")
    else:
        choice = recognise(tokenizer, read_model_type(str(model.path), model.revision))
    named = model.model_copy(update={"chat_template": choice.name})
    return config.model_copy(update={"model": named}), choice.line()


def recognise(tokenizer: Any, model_type: str, setting: str = "model.chat_template") -> Choice:
    """The template for a model. `setting`: where a user may name one. Raises ConfigError when there is none."""
    for choice in _choices(tokenizer, model_type):
        return choice
    why = "has no chat_template"
    if tokenizer.chat_template:
        why = f"has a chat_template that cannot be used ({_why_unusable(tokenizer)})"
    raise ConfigError(
        f"{setting}: not set, and no template is known for this model: its tokenizer {why}, and its model_type "
        f"{model_type or '(none)'} is that of no family whose tokens it has",
        _names(tokenizer, "--template " if setting.startswith("-") else "chat_template: "),
    )


def require_tokens(tokenizer: Any, name: str, path: str, revision: str | None) -> None:
    """Raise ConfigError when the tokenizer of a model lacks what a job's template needs; the hint names another one."""
    if name == "tokenizer":
        problem = "" if tokenizer.chat_template else "the tokenizer has no chat_template"
    else:
        missing = _missing(tokenizer, TEMPLATES[name].required)
        problem = f"the tokenizer has no token {', '.join(missing)}" if missing else ""
    if not problem:
        return
    try:
        choice = recognise(tokenizer, read_model_type(path, revision))
        hint = f"leave it out, or write chat_template: {choice.name} ({choice.reason})"
    except ConfigError:
        hint = _names(tokenizer, "chat_template: ")
    raise ConfigError(f"model.chat_template: got {name}, but {problem}", hint)


def _choices(tokenizer: Any, model_type: str) -> Iterator[Choice]:
    """What a model may be trained with, the best first."""
    card, its = chat_card_of(model_type), f"that of {model_type}'s chat models"
    family, guess = (card.template, card.guess) if card else (None, GUESSES.get(model_type))
    likely = [name for name in (family, guess) if name and _has(tokenizer, TEMPLATES[name])]
    if not tokenizer.chat_template:
        yield from (Choice(name, f"{its}; the tokenizer has no chat_template") for name in likely)
        return
    theirs = [_asked(tokenizer, probe) for probe in PROBES]
    alike = {name: _likeness(theirs, TEMPLATES[name]) for name in _fitting(tokenizer, likely)}
    same, near = ([name for name in alike if alike[name] == kind] for kind in ("same", "near"))
    yield from (Choice(name, "the tokenizer's chat_template writes the same") for name in same)
    if family in near:
        yield Choice(family, f"{its}; the tokenizer's chat_template writes the same turns and adds to them")
    if not _why_unusable(tokenizer):
        yield Choice("tokenizer", "the tokenizer's own chat_template")
    unusable = "the tokenizer's own chat_template cannot be trained with"
    yield from (Choice(name, f"{unusable}; it writes the same turns") for name in near)
    if family in likely:
        yield Choice(family, f"{its}; {unusable}")


def _missing(tokenizer: Any, tokens: Sequence[str]) -> list[str]:
    known = tokenizer.get_added_vocab()
    return [token for token in tokens if token not in known]


def _has(tokenizer: Any, template: Template) -> bool:
    return not _missing(tokenizer, template.required)


def _fitting(tokenizer: Any, likely: Sequence[str]) -> list[str]:
    """The templates whose tokens the tokenizer has, the likely ones first; of the others those of functions, too."""
    others = [
        name
        for name, template in TEMPLATES.items()
        if _has(tokenizer, template) and not _missing(tokenizer, _tool_tokens(template))
    ]
    return list(dict.fromkeys((*likely, *others)))


def _tool_tokens(template: Template) -> tuple[str, ...]:
    return template.tools.tokens if isinstance(template, TurnTemplate) and template.tools else ()


def _names(tokenizer: Any, written: str) -> str:
    """A hint."""
    fitting = _fitting(tokenizer, ())
    if not fitting:
        return "put a chat_template.jinja beside the tokenizer: it has the tokens of no template that is known here"
    known = ", ".join(fitting)
    return f"name one that it has the tokens of, such as {written}{fitting[0]} (it has those of {known})"


def _asked(tokenizer: Any, messages: Sequence[Message]) -> str:
    """The prompt as a server renders it; nothing where the tokenizer's chat_template refuses the messages."""
    try:
        chat = openai_messages(messages)
        return str(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
    except (TemplateError, *JINJA_BUGS):
        return ""


def _likeness(theirs: Sequence[str], template: Template) -> Literal["same", "near", ""]:
    """How the prompts of the tokenizer's own chat_template are like ours: the same, or the same turns with more around
    them, such as a system text in front or the start of an answer behind."""
    ours = [render_text(template.prompt(probe)) for probe in PROBES]
    if [*theirs[:2], theirs[2] or ours[2]] == ours:
        return "same"
    start = len(template.start) if isinstance(template, TurnTemplate) else 0
    return "near" if all(mine[start:] in own for mine, own in zip(ours[:2], theirs[:2], strict=True)) else ""


def _why_unusable(tokenizer: Any) -> str:
    """Why the tokenizer's own chat_template cannot write a whole conversation, if so: InternLM's of 2023 takes no
    answer at the end, and Qwen3's writes older answers in another way."""
    try:
        own_template(tokenizer).render([*_TURNS, Message("assistant", "2")])
    except (ConfigError, RowError) as error:
        return str(error)
    return ""
