"""The chat_template that a template writes of itself renders, in transformers' own environment, what the template
renders: a served model reads what was trained on (pains 2 and 3: lmdeploy#2597, xtuner#658)."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config.job import TemplateName
from trainer.data.message import Message, ToolCall
from trainer.data.own_template import openai_messages
from trainer.data.segment import render_text
from trainer.data.templates import TEMPLATES

pytest.importorskip("transformers")
NAMES = sorted(set(TemplateName.__args__) - {"tokenizer"})
TOOL_NAMES = [name for name in NAMES if TEMPLATES[name].tools]
SEVERAL_SYSTEMS = [name for name in NAMES if TEMPLATES[name].system.place == "anywhere"]

texts = st.text(max_size=12) | st.sampled_from(
    ["{{ messages }}", "{% endfor %}", "{# x #}", "{%- raw -%}", "'\"\\n", " 前后 \n", "\n\n", "<|im_end|>", "&<>", ""]
)  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(texts, inner, max_size=2),
    max_leaves=4,
)


def by_jinja(name, messages, tools=(), *, asks=False):
    from transformers.utils.chat_template_utils import render_jinja_template

    schemas = [{"type": "function", "function": tool} for tool in tools] or None
    chat, source = openai_messages(messages), TEMPLATES[name].jinja()
    return render_jinja_template([chat], tools=schemas, chat_template=source, add_generation_prompt=asks)[0][0]


def agree(name, messages, tools=()):
    template = TEMPLATES[name]
    assert by_jinja(name, messages, tools) == render_text(template.render(messages, tools))
    for index, message in enumerate(messages):
        if message.role == "assistant" and index:
            prompt = render_text(template.prompt(messages[:index], tools))
            assert by_jinja(name, messages[:index], tools, asks=True) == prompt


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=15, deadline=None)
@given(system=st.none() | texts, rounds=st.lists(st.tuples(texts, texts), min_size=1, max_size=3))
def test_jinja_renders_the_same_text_for_any_contents(name, system, rounds):
    chat = [] if system is None else [Message("system", system)]
    for question, answer in rounds:
        chat += [Message("user", question), Message("assistant", answer)]
    agree(name, chat)


@pytest.mark.parametrize("name", SEVERAL_SYSTEMS)
def test_jinja_renders_the_same_text_for_systems_at_any_place(name):
    agree(name, [Message("system", "a"), Message("system", "b"), Message("user", "c"), Message("assistant", "d"),
                 Message("system", "e"), Message("user", "f"), Message("assistant", "g")])  # fmt: skip


@st.composite
def tool_rounds(draw, name):
    """System or none, functions or none, a question, calls, results, an answer, and all but the system once more."""
    chat = [Message("system", draw(texts))] if draw(st.booleans()) else []
    alone = name in ("llama3", "mistral")
    for _ in range(draw(st.integers(1, 2))):
        arguments = st.dictionaries(texts, values, max_size=2)
        calls = draw(st.lists(st.builds(ToolCall, texts, arguments), min_size=1, max_size=2))
        calls = calls[:1] if name in ("llama3", "chatglm3") else calls
        chat += [Message("user", draw(texts)), Message("assistant", "" if alone else draw(texts), calls=tuple(calls))]
        chat += [Message("tool", draw(texts)) for _ in calls]
        chat += [Message("assistant", draw(texts))]
    schema = {"name": draw(texts), "description": draw(texts), "parameters": {"type": "object", "properties": {}}}
    return chat, draw(st.sampled_from([(), (schema,), (schema, {"name": "other"})]))


@pytest.mark.parametrize("name", TOOL_NAMES)
@settings(max_examples=20, deadline=None)
@given(data=st.data())
def test_jinja_renders_the_same_text_for_calls_and_results(name, data):
    agree(name, *data.draw(tool_rounds(name)))


@pytest.mark.parametrize("name", ["internlm2", "internlm3"])
def test_jinja_renders_the_same_text_for_internlm2_channels(name):
    agree(name, [
        Message("system", "S"),
        Message("system", "You now have access to a Jupyter notebook", channel="interpreter"),
        Message("user", "plot it"),
        Message("user", '[{"path": "data.csv"}]', channel="file"),
        Message("assistant", "Well.", calls=(ToolCall("interpreter", "print('{{ 1 }}')\n"),)),
        Message("tool", "1"),
        Message("assistant", "", calls=(ToolCall("find", {"a": [1, None]}),)),
        Message("tool", "2", channel="plugin"),
        Message("assistant", "done"),
    ], ({"name": "find"},))  # fmt: skip


@pytest.mark.parametrize("name", TOOL_NAMES)
def test_jinja_takes_a_missing_content_beside_calls_as_empty(name):
    """OpenAI's clients send null there, and transformers leaves the key out."""
    from transformers.utils.chat_template_utils import render_jinja_template

    asked = [Message("user", "U"), Message("assistant", "", calls=(ToolCall("f", {"x": 1}),))]
    chat = openai_messages(asked)
    del chat[1]["content"]
    text = render_jinja_template([chat], chat_template=TEMPLATES[name].jinja())[0][0]
    assert text == render_text(TEMPLATES[name].render(asked))


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(TOOL_NAMES)))
def test_jinja_refuses_calls_where_the_template_has_no_form(name):
    from jinja2.exceptions import TemplateError

    called = Message("assistant", "", calls=(ToolCall("f", {}),))
    with pytest.raises(TemplateError, match="no form for tool"):
        by_jinja(name, [Message("user", "U"), called])
    with pytest.raises(TemplateError, match="no form for tool"):
        by_jinja(name, [Message("user", "U"), Message("tool", "1")])


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(SEVERAL_SYSTEMS)))
def test_jinja_refuses_a_system_message_that_has_no_place(name):
    from jinja2.exceptions import TemplateError

    with pytest.raises(TemplateError, match="A system message is the first or none"):
        by_jinja(name, [Message("user", "U"), Message("system", "S")])


@pytest.mark.parametrize("name", NAMES)
def test_jinja_holds_no_generation_tags_and_no_variables_of_the_tokenizer(name):
    source = TEMPLATES[name].jinja()
    assert "generation %}" not in source and "bos_token" not in source and "eos_token" not in source
