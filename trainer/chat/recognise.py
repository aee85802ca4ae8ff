"""The template of a folder that does not come from a run of ours: known by what its own chat_template writes."""

from collections.abc import Sequence
from typing import Any

from jinja2.exceptions import TemplateError

from trainer.data.encode import Encoder
from trainer.data.message import Conversation, Message, RowError
from trainer.data.own_template import JINJA_BUGS, openai_messages, own_template
from trainer.data.segment import render_text
from trainer.data.template_check import Chat, check_template
from trainer.data.templates import TEMPLATES, Template
from trainer.errors import ConfigError

# model_type of config.json -> templates of the makers' chat models, the likeliest first
FAMILY_TEMPLATES: dict[str, tuple[str, ...]] = {
    "internlm": ("internlm",),
    "internlm2": ("internlm2",),
    "internlm3": ("internlm3",),
    "xcomposer2": ("internlm2",),
    "llama": ("llama3", "llama2"),
    "mistral": ("mistral",),
    "mixtral": ("mistral",),
    **dict.fromkeys(("gemma", "gemma2", "gemma3", "gemma3_text"), ("gemma",)),
    **dict.fromkeys(("qwen2", "qwen2_moe", "qwen3", "qwen3_moe"), ("qwen",)),
    "phi3": ("phi3",),
    "chatglm": ("chatglm3",),
    **dict.fromkeys(("deepseek_v2", "deepseek_v3"), ("deepseek",)),
}
_TURNS = [Message("user", "One?"), Message("assistant", "1"), Message("user", "Two?"), Message("assistant", "2")]
PROBES = (_TURNS, [Message("system", "Be brief."), *_TURNS])


def recognise(tokenizer: Any, model_type: str) -> tuple[str, str]:
    """The name of the template, and where it was found. Raises ConfigError when there is none."""
    family = FAMILY_TEMPLATES.get(model_type, ())
    if tokenizer.chat_template:
        for name in dict.fromkeys((*family, *TEMPLATES)):
            if _fits(tokenizer, TEMPLATES[name]) and _same(tokenizer, TEMPLATES[name]):
                return name, "the folder's chat_template writes the same"
        if _usable(tokenizer):
            return "tokenizer", "the folder's own chat_template"
    for name in family:
        if _fits(tokenizer, TEMPLATES[name]):
            return name, f"that of {model_type}'s chat models; the folder has no chat_template that can be used"
    raise ConfigError(
        f"--template: got none, and the model ({model_type or 'of no known type'}) has no chat_template",
        f"name the one that it was trained with: --template {'|'.join(TEMPLATES)}",
    )


def _fits(tokenizer: Any, template: Template) -> bool:
    known = tokenizer.get_added_vocab()
    return all(token in known for token in template.required)


def _same(tokenizer: Any, template: Template) -> bool:
    """Whether both write the same conversations, and the same prompt."""
    if tokenizer.chat_template == template.jinja():
        return True
    chats = [Chat("probe", Conversation(list(probe)), template.render(probe)) for probe in PROBES]
    if check_template(template.name, Encoder(tokenizer, template), tokenizer, chats).result != "equal":
        return False
    return _asked(tokenizer, _TURNS[:1]) == render_text(template.prompt(_TURNS[:1]))


def _asked(tokenizer: Any, messages: Sequence[Message]) -> str | None:
    try:
        chat = openai_messages(messages)
        return str(tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False))
    except (TemplateError, *JINJA_BUGS):
        return None


def _usable(tokenizer: Any) -> bool:
    """Whether its own Jinja writes a whole conversation: InternLM's of 2023 takes no answer at the end."""
    try:
        own_template(tokenizer).render(_TURNS)
    except (ConfigError, RowError):
        return False
    return True
