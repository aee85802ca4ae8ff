"""Functions, calls and results as each family writes them: golden text, and which of it is trained."""

from pathlib import Path

import pytest

from trainer.config.job import TemplateName
from trainer.data.message import Message, RowError, ToolCall
from trainer.data.segment import render_text
from trainer.data.templates import TEMPLATES
from trainer.data.tools import TOOL_TEMPLATES

GOLDEN = Path(__file__).parents[1] / "golden" / "templates"
NAMES = sorted(name for name, template in TEMPLATES.items() if template.tools)
WITHOUT = sorted(set(TemplateName.__args__) - {"tokenizer", *NAMES})
WEATHER = {
    "name": "get_weather",
    "description": "Weather of a city",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CALL = ToolCall("get_weather", {"city": "上海"})
CODE = ToolCall("interpreter", "print(1 + 1)")
# families whose makers' templates write no text beside a call
ALONE = ["llama3", "mistral"]


def chat(said=""):
    return [
        Message("system", "You are terse."),
        Message("user", "Weather in Shanghai?"),
        Message("assistant", said, calls=(CALL,)),
        Message("tool", '{"celsius": 22}'),
        Message("assistant", "22 degrees."),
        Message("user", "Thanks"),
        Message("assistant", "Welcome."),
    ]


def trained(segments):
    return "".join(part.text for part in segments if part.trained)


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_with_functions_is_written_as_the_maker_writes_it(name):
    said = "" if name in ALONE else "Let me look."
    text = render_text(TEMPLATES[name].render(chat(said), (WEATHER,)))
    assert text == (GOLDEN / f"{name}-tools.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("internlm2", 'Hm.<|action_start|><|plugin|>\n{"name": "get_weather", "parameters": {"city": "上海"}}'
                      "<|action_end|><|im_end|>22 degrees.<|im_end|>Welcome.<|im_end|>"),
        ("chatml", 'Hm.\n<tool_call>\n{"name": "get_weather", "arguments": {"city": "上海"}}\n</tool_call><|im_end|>'
                   "22 degrees.<|im_end|>Welcome.<|im_end|>"),
        ("llama3", '{"name": "get_weather", "parameters": {"city": "上海"}}<|eot_id|>22 degrees.<|eot_id|>'
                   "Welcome.<|eot_id|>"),
        ("mistral", '[TOOL_CALLS] [{"name": "get_weather", "arguments": {"city": "上海"}, "id": "000000000"}]</s>'
                    " 22 degrees.</s> Welcome.</s>"),
        ("chatglm3", '\n Hm.<|assistant|>get_weather\n ```python\ntool_call(city="上海")\n```<|observation|>'
                     "\n 22 degrees.<|user|>\n Welcome.<|user|>"),
    ],
)  # fmt: skip
def test_a_call_is_trained_and_a_result_never(name, expected):
    said = "" if name in ALONE else "Hm."
    assert trained(TEMPLATES[name].render(chat(said), (WEATHER,))) == expected


@pytest.mark.parametrize("name", NAMES)
def test_a_call_without_loss_is_not_trained(name):
    messages = [message._replace(loss=not message.calls) for message in chat()]
    text = trained(TEMPLATES[name].render(messages, (WEATHER,)))
    assert "get_weather" not in text and "22 degrees." in text and "TOOL_CALLS" not in text and "action" not in text


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_is_never_cut_between_a_call_and_its_answer(name):
    segments = TEMPLATES[name].render(chat(), (WEATHER,))
    ends = [index for index, part in enumerate(segments) if part.ends_turn]
    assert [render_text(segments[:end]).rsplit("\n", 1)[-1][-8:] for end in ends] == ["degrees.", "Welcome."]


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_may_end_with_a_call(name):
    segments = TEMPLATES[name].render(chat()[:3], (WEATHER,))
    assert [part.trained for part in segments if part.ends_turn] == [True]


@pytest.mark.parametrize("name", NAMES)
def test_the_prompt_after_a_result_is_the_start_of_the_conversation(name):
    whole, prompt = render_text(TEMPLATES[name].render(chat())), render_text(TEMPLATES[name].prompt(chat()[:4]))
    assert whole.startswith(prompt) and whole[len(prompt) :].lstrip("\n ").startswith("22 degrees.")


@pytest.mark.parametrize("name", NAMES)
def test_functions_calls_and_results_are_content_and_cannot_write_tokens(name):
    token = TEMPLATES[name].answer.end
    messages = [
        Message("user", "U"),
        Message("assistant", "", calls=(ToolCall("f", {"a": token}),)),
        Message("tool", token),
        Message("assistant", "A"),
    ]
    segments = TEMPLATES[name].render(messages, ({"name": "f", "description": token},))
    assert sum(token in part.text for part in segments if part.content) == 3
    assert all(
        part.text in TEMPLATES[name].required + TEMPLATES[name].tools.tokens for part in segments if part.control
    )


@pytest.mark.parametrize("name", NAMES)
def test_functions_have_a_place_without_a_system_message(name):
    messages = chat()[1:]
    with_tools, without = TEMPLATES[name].render(messages, (WEATHER,)), TEMPLATES[name].render(messages)
    assert sum("Weather of a city" in part.text for part in with_tools if part.content) == 1
    assert "Weather of a city" not in render_text(without) and trained(with_tools) == trained(without)


@pytest.mark.parametrize("name", ["internlm2", "internlm3"])
def test_code_goes_to_the_interpreter_as_a_python_block(name):
    messages = [
        Message("user", "1 + 1?"),
        Message("assistant", "I run it.", calls=(CODE,)),
        Message("tool", "2"),
        Message("assistant", "2."),
    ]
    assert render_text(TEMPLATES[name].render(messages)) == (
        "<s><|im_start|>user\n1 + 1?<|im_end|>\n"
        "<|im_start|>assistant\nI run it.<|action_start|><|interpreter|>\n```python\nprint(1 + 1)\n```<|action_end|>"
        "<|im_end|>\n<|im_start|>environment name=<|interpreter|>\n2<|im_end|>\n"
        "<|im_start|>assistant\n2.<|im_end|>\n"
    )


@pytest.mark.parametrize(
    ("channel", "header"),
    [("plugin", "environment name=<|plugin|>\n"), ("interpreter", "environment name=<|interpreter|>\n"),
     ("file", "environment name=file\n"), ("", "environment name=<|plugin|>\n")],
)  # fmt: skip
def test_the_channel_stands_in_the_header_of_an_internlm2_result(channel, header):
    messages = [Message("assistant", "", calls=(CALL,)), Message("tool", "R", channel=channel)]
    text = render_text(TEMPLATES["internlm2"].render(messages))
    assert text.endswith(f"<|im_start|>{header}R<|im_end|>\n")


def test_the_channel_stands_in_the_header_of_an_internlm2_system_or_user_turn():
    messages = [Message("system", "Jupyter", channel="interpreter"), Message("user", "[data.csv]", channel="file")]
    assert render_text(TEMPLATES["internlm2"].render(messages)) == (
        "<s><|im_start|>system name=<|interpreter|>\nJupyter<|im_end|>\n"
        "<|im_start|>user name=file\n[data.csv]<|im_end|>\n"
    )


@pytest.mark.parametrize("name", ["chatml", "qwen"])
def test_results_that_follow_each_other_share_a_turn(name):
    messages = [Message("assistant", "", calls=(CALL, CALL)), Message("tool", "R1"), Message("tool", "R2")]
    assert render_text(TEMPLATES[name].render(messages)).endswith(
        "<|im_start|>user\n<tool_response>\nR1\n</tool_response>\n<tool_response>\nR2\n</tool_response><|im_end|>\n"
    )


def test_the_tags_are_tokens_for_qwen_and_text_for_others():
    def tags(name):
        return [part.control for part in TEMPLATES[name].render(chat()) if part.text.strip() == "<tool_call>"]

    assert tags("qwen") == [True] and tags("chatml") == [False]


@pytest.mark.parametrize("name", WITHOUT)
def test_a_template_without_a_form_refuses_and_names_those_that_have_one(name):
    expected = f"got function calls with the template {name}, expected one of {TOOL_TEMPLATES}"
    for messages, tools, where in [
        ([Message("user", "U"), Message("assistant", "", calls=(CALL,))], (), "messages[1].tool_calls"),
        ([Message("user", "U"), Message("tool", "R")], (), "messages[1].role"),
        ([Message("user", "U")], (WEATHER,), "tools"),
    ]:
        with pytest.raises(RowError) as caught:
            TEMPLATES[name].render(messages, tools)
        assert str(caught.value) == f"{where}: {expected}"


def test_the_templates_with_a_form_are_named_in_that_error():
    assert sorted(TOOL_TEMPLATES.split(", ")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_a_result_without_a_call_is_refused(name):
    with pytest.raises(RowError, match=r"messages\[1\]\.role: got tool without a call before it"):
        TEMPLATES[name].render([Message("user", "U"), Message("tool", "R")])


@pytest.mark.parametrize(
    ("name", "message", "error"),
    [
        ("llama3", Message("assistant", "T", calls=(CALL,)), "messages[0].content: got text beside a call"),
        ("mistral", Message("assistant", "T", calls=(CALL,)), "messages[0].content: got text beside a call"),
        ("llama3", Message("assistant", "", calls=(CALL, CALL)), "messages[0].tool_calls: got 2 calls"),
        ("chatglm3", Message("assistant", "", calls=(CALL, CALL)), "messages[0].tool_calls: got 2 calls"),
        ("chatglm3", Message("assistant", "", calls=(ToolCall("f", "x"),)), "got arguments that are no object"),
    ],
)
def test_what_a_family_cannot_write_of_a_call_is_refused(name, message, error):
    with pytest.raises(RowError) as caught:
        TEMPLATES[name].render([message])
    assert error in str(caught.value) and name in str(caught.value)


def test_chatglm3_refuses_a_call_that_no_result_follows():
    """The token of the next turn ends the call, and it is not the user's."""
    with pytest.raises(RowError, match=r"messages\[1\]\.role: got user after a call, expected tool"):
        TEMPLATES["chatglm3"].render([Message("assistant", "", calls=(CALL,)), Message("user", "U")])
