"""Rows that are wrong, and what is said about each: field, what was given, what is allowed."""

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.test_formats import chat, golden, mapped, source
from trainer.config.job import FORMATS
from trainer.data.formats.detect import detect_format
from trainer.data.formats.mapper import passes
from trainer.data.message import Conversation, RowError
from trainer.data.sources import read_source

Q, A = ("user", "q"), ("assistant", "a")
ROLES = "system, developer, user, assistant, tool, environment, function"
SHAREGPT = "human, user, gpt, assistant, system, function_call, observation, tool"


def call(**fields):
    return {
        "role": "assistant",
        "content": None,
        "tool_calls": [{"function": {"name": "f", "arguments": {}, **fields}}],
    }


def said(*turns):
    return {"conversations": [{"from": role, "value": value} for role, value in turns]}


def trl(flag):
    """A prompt that holds an answer with a flag, and the completion."""
    prompt = chat(Q, {"role": "assistant", "content": "a", **flag}, ("user", "r"))["messages"]
    return {"prompt": prompt, "completion": chat(("assistant", "b"))["messages"]}


def moss(**parts):
    turn = {"Human": "<|Human|>: q<eoh>\n", "MOSS": "<|MOSS|>: a<eom>\n", **parts}
    return {"meta_instruction": "- Calculator: enabled. API: Calculate(expression)\n", "chat": {"turn_1": turn}}


BAD = [
    # order, the same for every chat format
    ("messages", chat(), "messages: got no turn of an assistant, expected one at least"),
    ("messages", chat(Q), "messages: got no turn of an assistant, expected one at least"),
    ("messages", chat(A), "messages[0]: got a turn of the assistant before any of the user, expected the user's first"),
    ("messages", chat(("system", "s"), A, Q, A),
     "messages[1]: got a turn of the assistant before any of the user, expected the user's first"),
    ("messages", chat(Q, A, A),
     "messages[2]: got two turns of the assistant in a row, expected a turn of the user or a tool in between"),
    ("messages", chat(Q, ("assistant", " \n")), "messages[1]: got an empty answer, expected text"),
    ("messages", chat(Q, ("assistant", "")), "messages[1]: got an empty answer, expected text"),
    ("messages", chat(Q, ("tool", "r"), A),
     "messages[1]: got a tool's result without a call, expected it after an assistant's call"),
    ("messages", chat(Q, A, ("tool", "r")),
     "messages[2]: got a tool's result without a call, expected it after an assistant's call"),
    ("messages", chat(Q, call(), ("user", "v"), ("tool", "r")),
     "messages[3]: got a tool's result without a call, expected it after an assistant's call"),
    ("sharegpt", said(("human", "q"), ("gpt", "a"), ("gpt", "b")),
     "conversations[2]: got two turns of the assistant in a row, expected a turn of the user or a tool in between"),
    ("sharegpt", {**said(("human", "q"), ("gpt", "")), "system": "s"},
     "conversations[1]: got an empty answer, expected text"),
    ("guanaco", {"text": "### Human: q### Assistant: a### Assistant: b"},
     "text[2]: got two turns of the assistant in a row, expected a turn of the user or a tool in between"),
    ("guanaco", {"text": "### Assistant: a"},
     "text[0]: got a turn of the assistant before any of the user, expected the user's first"),
    # messages
    ("messages", {}, "messages: got a row without columns, expected a column messages with a list"),
    ("messages", {"a": 1, "b": 2}, "messages: got only the columns a, b, expected a column messages with a list"),
    ("messages", {"messages": None}, "messages: got null, expected a list"),
    ("messages", {"messages": 1.5}, "messages: got 1.5, expected a list"),
    ("messages", {"messages": "x"},
     "messages: got text 'x', which is no JSON (expected value at line 1 column 1), expected JSON"),
    ("messages", {"messages": ["x"]}, "messages[0]: got text 'x', expected an object {role, content}"),
    ("messages", chat(("robot", "x")), f"messages[0].role: got text 'robot', expected {ROLES}"),
    ("messages", {"messages": [{"content": "x"}]}, f"messages[0].role: got null, expected {ROLES}"),
    ("messages", chat((["user"], "x")), f"messages[0].role: got a list, expected {ROLES}"),
    ("messages", {"messages": [{"role": "user"}]},
     "messages[0].content: got null, expected text, or a list of text and image_url parts"),
    ("messages", chat(Q, ("assistant", None)),
     "messages[1].content: got null, expected text, or a list of text and image_url parts"),
    ("messages", chat(("user", 3), A),
     "messages[0].content: got 3, expected text, or a list of text and image_url parts"),
    ("messages", chat(("user", [{"type": "audio"}]), A),
     "messages[0].content[0].type: got text 'audio', expected text, image_url"),
    ("messages", chat(("user", ["x"]), A), "messages[0].content[0].type: got null, expected text, image_url"),
    ("messages", chat(("user", [{"type": "text", "text": 1}]), A), "messages[0].content[0].text: got 1, expected text"),
    ("messages", chat(("user", [{"type": "image_url", "image_url": {}}]), A),
     "messages[0].content[0].image_url.url: got null, expected text"),
    ("messages", chat(Q, {"role": "assistant", "content": "a", "loss": "maybe"}),
     "messages[1].loss: got text 'maybe', expected true or false"),
    ("messages", chat(Q, {"role": "assistant", "content": "a", "weight": []}),
     "messages[1].weight: got a list, expected 0 or 1 (there are no weights in between)"),
    ("messages", chat(Q, {"role": "assistant", "content": "a", "weight": 0.5}),
     "messages[1].weight: got 0.5, expected 0 or 1 (there are no weights in between)"),
    ("messages", chat(Q, {"role": "assistant", "content": "a", "loss": "false"}),
     "messages[1].loss: got text 'false', expected true or false"),
    ("messages", chat(Q, {"role": "assistant", "content": "a", "loss": True, "train": False}),
     "messages[1]: got flags that contradict each other (loss true, train false), expected one flag"),
    ("messages", chat({"role": "user", "content": "q", "train": True}, A),
     "messages[0].train: got true on a turn of the user, expected no flag there: only the assistant's turns are "
     "trained"),
    ("sharegpt", {"conversations": [{"from": "system", "value": "s", "weight": 1}]},
     "conversations[0].weight: got 1 on a turn of the system, expected no flag there: only the assistant's turns "
     "are trained"),
    ("sharegpt", {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "mask": True}]},
     "conversations[1].mask: got true, expected loss: true or loss: false (other flags have no clear meaning)"),
    ("messages", chat(Q, {"role": "assistant", "content": "a", "train_detail": [{"train": False}]}),
     "messages[1].train_detail: got a list, expected loss: true or loss: false (other flags have no clear "
     "meaning)"),
    ("messages", chat(Q, {"role": "assistant", "content": "a", "lossMask": 0}),
     "messages[1].lossMask: got 0, expected loss: true or loss: false (other flags have no clear meaning)"),
    ("messages", chat(Q, {"role": "assistant", "content": "a", "loss": True, "Loss": False}),
     "messages[1]: got flags that contradict each other (loss true, Loss false), expected one flag"),
    ("messages", chat(Q, {"role": "assistant", "content": [{"type": "text", "text": "a", "loss": False}]}),
     "messages[1].content[0].loss: got false, expected no flag there, but loss: true or loss: false beside the turn's "
     "content"),
    ("messages", chat(Q, {"role": "assistant", "tool_calls": [{"Train": 0, "function": {"name": "f"}}]}),
     "messages[1].tool_calls[0].Train: got 0, expected no flag there, but loss: true or loss: false beside the turn's "
     "content"),
    ("sharegpt", said(("human", "q"), ("function_call", '{"name": "f", "weight": 0}')),
     "conversations[1].value.weight: got 0, expected no flag there, but loss: true or loss: false beside the turn's "
     "content"),
    ("msagent", said(("user", "q"), ("assistant", '<|startofthink|>{"api_name": "f", "loss": false}<|endofthink|>')),
     "conversations[1].value.loss: got false, expected no flag there, but loss: true or loss: false beside the turn's "
     "content"),
    # prompt and completion
    ("prompt_completion", trl({"train": True}), "prompt[1].train: got true in the prompt, expected no flag there: only "
     "the completion is trained"),
    ("prompt_completion", trl({"Loss": 1}), "prompt[1].Loss: got 1 in the prompt, expected no flag there: only the "
     "completion is trained"),
    ("prompt_completion", {"prompt": "q", "completion": chat(A)["messages"]},
     "prompt: got text 'q', expected a list of messages as completion has, or text in both"),
    ("prompt_completion", {"prompt": chat(Q)["messages"], "completion": "a"},
     "completion: got text 'a', expected a list of messages as prompt has, or text in both"),
    ("prompt_completion", {"completion": chat(A)["messages"]}, "prompt: got only the columns completion, expected a "
     "column prompt with a list of messages as completion has, or text in both"),
    # results
    ("messages", chat(Q, call(), ("tool", "r"), ("tool", "s"), A),
     "messages[3]: got one more tool's result than calls, expected one for each call"),
    ("messages", chat(Q, {"role": "assistant", "tool_calls": [{"id": name, "name": "f"} for name in "ab"]},
                      *[{"role": "tool", "tool_call_id": "a", "content": "r"}] * 2),
     "messages[3].tool_call_id: got text 'a' once more, expected one result for each call"),
    ("sharegpt", said(("human", "q"), ("function_call", '{"name": "f"}'), ("observation", "r"), ("tool", "s")),
     "conversations[3]: got one more tool's result than calls, expected one for each call"),
    # arguments under other keys
    ("messages", chat(Q, call(arguments="null")),
     "messages[1].tool_calls[0].arguments: got null, expected an object or its JSON text"),
    ("messages", chat(Q, call(arguments='""')),
     "messages[1].tool_calls[0].arguments: got text '', expected an object or its JSON text"),
    ("messages", chat(Q, call(parameters="null", arguments=None)),
     "messages[1].tool_calls[0].parameters: got null, expected an object or its JSON text"),
    ("messages", chat(Q, call(parameters={"x": 1})),
     "messages[1].tool_calls[0].parameters: got a key beside arguments, expected one of the two"),
    ("messages", chat(Q, call(arguments="", input={"x": 1})),
     "messages[1].tool_calls[0]: got a call without arguments, but with the key 'input', expected the key arguments"),
    ("messages", chat(Q, {"role": "assistant", "tool_calls": [{"function": {"name": "f"}, "arguments": '{"x": 1}'}]}),
     "messages[1].tool_calls[0]: got a call without arguments, but with the key 'arguments', expected the key "
     "arguments"),
    ("sharegpt", said(("human", "q"), ("function_call", '{"name": "f", "args": {"x": 1}}')),
     "conversations[1].value: got a call without arguments, but with the key 'args', expected the key arguments"),
    ("msagent", said(("user", "q"), ("assistant", '<|startofthink|>{"api_name": "f", "in": {"x": 1}}<|endofthink|>')),
     "conversations[1].value: got a call without arguments, but with the key 'in', expected the key arguments"),
    ("sharegpt", {"conversations": [
        {"from": "human", "value": "q"}, {"from": "gpt", "value": "a", "loss": False},
        {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}]},
     "conversations[2]: got another loss flag than the turn that it is part of, expected the same flag"),
    ("moss", moss(loss="no"), "chat.turn_1.loss: got text 'no', expected true or false"),
    ("msagent", {"conversations": [{"from": "user", "value": "q", "training": 2}]},
     "conversations[0].training: got 2, expected true or false"),
    # a key twice, in a JSON text or in Python's
    ("messages", {"messages": '[{"role": "user", "content": "LOST", "content": "q"}]'},
     "messages: got the key 'content' more than once in an object, expected each key once"),
    ("messages", chat(Q, call(arguments='{"x": 1, "y": {"z": 1, "z": 2}}')),
     "messages[1].tool_calls[0].arguments: got the key 'z' more than once in an object, expected each key once"),
    ("sharegpt", said(("human", "q"), ("function_call", '{"name": "f", "name": "g", "arguments": {}}')),
     "conversations[1].value: got the key 'name' more than once in an object, expected each key once"),
    ("msagent", {"conversations": "[{'from': 'user', 'value': 'LOST', 'value': 'q'}]"},
     "conversations: got a key more than once in a dict, expected each key once"),
    ("msagent", said(("system", '当前对话可以使用的插件信息如下 1. {"name": "f", "name": "g"}')),
     "conversations[0].value: got the key 'name' more than once in an object, expected each key once"),
    # the turns of one format under the column of another
    ("messages", {"messages": [{"from": "human", "value": "q"}]},
     "messages[0]: got a turn with the key from, expected role, or in the job format: sharegpt and columns: "
     "{conversations: messages}"),
    ("sharegpt", {"conversations": [{"role": "user", "content": "q"}]},
     "conversations[0]: got a turn with the key role, expected from, or in the job format: messages and columns: "
     "{messages: conversations}"),
    # a system text beside the turns
    ("messages", {**chat(("system", "s"), Q, A), "system": "t"},
     "system: got text 't', expected the system text that messages has (text 's'), or one of the two"),
    ("sharegpt", {**said(("system", "s"), ("human", "q"), ("gpt", "a")), "system": "t"},
     "system: got text 't', expected the system text that conversations has (text 's'), or one of the two"),
    # tools
    ("messages", {**chat(Q, A), "tools": 1}, "tools: got 1, expected a list"),
    ("messages", {**chat(Q, A), "tools": ["f"]},
     "tools[0]: got text 'f', expected an object {name, description, parameters}"),
    ("messages", {**chat(Q, A), "tools": [{"function": {}}]},
     "tools[0].name: got null, expected the name of a function"),
    ("messages", {**chat(Q, A), "tools": [{"name": "f", "parameters": "x"}]},
     "tools[0].parameters: got text 'x', expected an object"),
    ("messages", {**chat(Q, A), "tools": [{"name": "f", "description": 1}]},
     "tools[0].description: got 1, expected text"),
    ("messages", {**chat(Q, A), "tools": [{"name": "f"}], "functions": [{"name": "f"}]},
     "functions: got a column beside tools, expected one of the two"),
    ("messages", {**chat(Q, A), "functions": ["f"]},
     "functions[0]: got text 'f', expected an object {name, description, parameters}"),
    ("messages", chat(Q, {**call(), "function_call": {"name": "f", "arguments": "{}"}}),
     "messages[1].function_call: got a call beside tool_calls, expected one of the two"),
    ("messages", chat(Q, {"role": "assistant", "tool_calls": {}}),
     "messages[1].tool_calls: got an object, expected a list"),
    ("messages", chat(Q, {"role": "assistant", "tool_calls": ["f"]}),
     "messages[1].tool_calls[0]: got text 'f', expected an object {name, arguments}"),
    ("messages", chat(Q, call(name=None)), "messages[1].tool_calls[0].name: got null, expected the name of a function"),
    ("messages", chat(Q, call(arguments="[1]")),
     "messages[1].tool_calls[0].arguments: got a list, expected an object or its JSON text"),
    ("messages", chat(Q, call(arguments="{")),
     "messages[1].tool_calls[0].arguments: got text '{', which is no JSON (EOF while parsing an object at line 1 "
     "column 1), expected JSON"),
    ("messages", chat(Q, call(name="interpreter", arguments={"x": 1})),
     "messages[1].tool_calls[0].arguments: got null, expected code as text, or {code: text}"),
    ("messages", chat(Q, {**call(), "tool_calls": [{"id": "a", "name": "f"}]},
                      {"role": "tool", "tool_call_id": "z", "content": "r"}, A),
     "messages[2].tool_call_id: got text 'z', expected a"),
    # images
    ("messages", {**chat(("user", "<image>"), A), "images": []},
     "images: got 0 images, expected 1, one for each <image> in the text"),
    ("messages", {**chat(Q, A), "images": ["1.jpg", "2.jpg"]},
     "images: got 2 images, expected 0, one for each <image> in the text"),
    ("messages", {**chat(("user", "<image>"), A), "images": [1]}, "images[0]: got 1, expected a path or an address"),
    ("messages", {**chat(("user", [{"type": "image_url", "image_url": "x"}]), A), "images": ["1.jpg"]},
     "images: got a column of images and image_url parts, expected one of the two"),
    ("sharegpt", {**said(("human", "<image><image>"), ("gpt", "a")), "image": "1.jpg"},
     "image: got 1 images, expected 2, one for each <image> in the text"),
    ("sharegpt", {**said(("human", "<image>"), ("gpt", "a")), "image": "1.jpg", "images": ["2.jpg"]},
     "image: got a column beside images, expected one of the two"),
    # TRL's prompt and completion
    ("prompt_completion", {"prompt": [{"role": "user", "content": 1}], "completion": [{"role": "assistant"}]},
     "prompt[0].content: got 1, expected text, or a list of text and image_url parts"),
    ("prompt_completion", {"prompt": [{"role": "user", "content": "q"}], "completion": [{"role": "assistant"}]},
     "completion[0].content: got null, expected text, or a list of text and image_url parts"),
    ("prompt_completion", {"prompt": [{"role": "user", "content": "q"}], "completion": []},
     "completion: got no turn of an assistant, expected one at least"),
    ("prompt_completion", {"prompt": "q", "completion": " "}, "completion: got an empty answer, expected text"),
    ("prompt_completion", {"prompt": "q", "completion": None}, "completion: got null, expected text"),
    # sharegpt
    ("sharegpt", said(("bot", "x")), f"conversations[0].from: got text 'bot', expected {SHAREGPT}"),
    ("sharegpt", said(("human", None)), "conversations[0].value: got null, expected text"),
    ("sharegpt", {"conversations": [[]]}, "conversations[0]: got a list, expected an object {from, value}"),
    ("sharegpt", {**said(("human", "q"), ("gpt", "a")), "system": 1}, "system: got 1, expected text"),
    ("sharegpt", said(("human", "q"), ("function_call", "f()")),
     "conversations[1].value: got text 'f()', which is no JSON (expected ident at line 1 column 2), expected JSON"),
    ("sharegpt", said(("human", "q"), ("function_call", "[]")),
     "conversations[1].value: got a list, expected {name, arguments} or a list of them"),
    ("sharegpt", said(("human", "q"), ("function_call", '[{"name": "f", "arguments": 1}]')),
     "conversations[1].value[0].arguments: got 1, expected an object or its JSON text"),
    # guanaco, alpaca and its like
    ("guanaco", {"text": "hello"}, "text: got text 'hello', expected '### Human: ...### Assistant: ...'"),
    ("alpaca", {"instruction": "q", "input": ""},
     "output: got only the columns instruction, input, expected a column output with text"),
    ("alpaca", {"instruction": "q", "output": ["a"]}, "output: got a list, expected text"),
    ("alpaca", {"instruction": "q", "output": " "}, "output: got an empty answer, expected text"),
    ("alpaca", {"instruction": "q", "output": "<nooutput>"},
     "output: got <nooutput>, Alpaca's mark of no answer, expected text"),
    ("alpaca", {"instruction": "", "input": " ", "output": "a"}, "instruction: got an empty question, expected text"),
    ("alpaca", {"instruction": "q", "output": "a", "history": [["x"]]},
     "history[0]: got a list, expected a list of two texts: question, answer"),
    ("alpaca", {"instruction": "q", "output": "a", "history": [["x", ""]]},
     "history[0][1]: got text '', expected text"),
    ("sql", {"context": "c", "answer": "a", "question": {}}, "question: got an object, expected text"),
    # documents
    ("text", {"text": "\n"}, "text: got an empty document, expected text"),
    ("wanjuan", {"content": 1}, "content: got 1, expected text"),
    ("wanjuan_image_text", {"content": "x", "img_list": [{"caption": ""}]},
     "img_list[0]: got an object, expected an object with a url"),
    ("wanjuan_image_text", {"content": "<image>![](x.jpg)", "img_list": [{"url": "x.jpg"}]},
     "content: got text that holds <image> itself, expected images as ![](address)"),
    # agents
    ("moss", {"chat": []}, "chat: got a list, expected an object {turn_1: {...}, ...}"),
    ("moss", {"chat": {"turn_2": {}}}, "chat.turn_1: got null, expected an object {Human, MOSS, ...}"),
    ("moss", moss(MOSS="<|MOSS|>: <eom>\n"), "chat.turn_1.MOSS: got an empty answer, expected text"),
    ("moss", moss(Human=None), "chat.turn_1.Human: got null, expected text"),
    ("moss", moss(Commands='<|Commands|>: Search("x")<eoc>\n', **{"Tool Responses": "r"}),
     """chat.turn_1.Commands: got text 'Search("x")', expected Calculate("...")"""),
    ("moss", moss(Commands='<|Commands|>: Calculate("1")<eoc>\n'),
     "chat.turn_1.Tool Responses: got no results of the commands, expected text"),
    ("msagent", said(("human", "q")), "conversations[0].from: got text 'human', expected system, user, assistant"),
    ("msagent", said(("user", "q"), ("assistant", "<|startofthink|>{}")),
     "conversations[1].value: got a mark that is not closed, expected <|startofthink|>...<|endofthink|>"),
    ("msagent", said(("user", "q"), ("assistant", "<|startofthink|>{}<|endofthink|>")),
     "conversations[1].value.name: got null, expected the name of a function"),
    ("msagent", said(("user", "q"), ("assistant", "<|startofexec|>{}<|endofexec|>")),
     "conversations[1]: got a tool's result without a call, expected it after an assistant's call"),
    ("msagent", said(("user", "q"), ("assistant", '<|startofthink|>{"api_name": "f"}<|endofthink|>Wait.'
                                                  "<|startofexec|>{}<|endofexec|>")),
     "conversations[1].value: got text 'Wait.' between a call and its result, expected nothing there"),
    ("msagent", said(("system", "当前对话可以使用的插件信息如下 {}")),
     "conversations[0].value: got another plugin, expected {name, description, paths: [{parameters: [{name}]}]}"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "row", "said"), BAD, ids=[f"{name}: {text[:60]}" for name, _, text in BAD])
def test_a_bad_row_is_told_by_field_what_it_has_and_what_is_allowed(name, row, said):
    with pytest.raises(RowError) as error:
        mapped(name, row)
    assert str(error.value) == said


@pytest.mark.parametrize(
    ("number", "kept"),
    [(0.5, True), ("0.7", True), (0.4, False), (0.9, False), (float("inf"), False), (True, False), (False, False)],
)
def test_rows_outside_the_bounds_of_a_column_do_not_pass(number, kept):
    assert passes(source(min={"s": 0.5}, max={"s": 0.8}), {"s": number}) is kept


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({"t": 1}, "s: got only the columns t, expected a column s with a number"),
        ({"s": None}, "s: got null, expected a number"),
        ({"s": "high"}, "s: got text 'high', expected a number"),
        ({"s": float("nan")}, "s: got NaN, expected a number"),
        ({"s": [1]}, "s: got a list, expected a number"),
    ],
)
def test_a_bound_on_what_is_no_number_is_a_bad_row(row, said):
    for bound in ("min", "max"):
        with pytest.raises(RowError) as error:
            passes(source(**{bound: {"s": 0.5}}), row)
        assert str(error.value) == said


texts = st.text(max_size=8) | st.sampled_from(
    ["user", "human", "assistant", "gpt", "tool", "function_call", "system", "text", "image_url", "<image>", "[]", "{}",
     '{"name": "f", "arguments": {}}', '[{"role": "user", "content": "q"}]', "### Human: q### Assistant: a",
     "interpreter", "<|startofthink|>{}<|endofthink|>", "<|startofexec|>[]<|endofexec|>",
     "当前对话可以使用的插件信息如下 {\"a\": {}}", '<|Commands|>: F("1")<eoc>', "- C: enabled. API: F(x)"]
)  # fmt: skip
keys = st.sampled_from(
    ["role", "content", "from", "value", "name", "arguments", "function", "tool_calls", "tool_call_id", "loss", "id",
     "type", "text", "image_url", "url", "turn_1", "Human", "MOSS", "Commands", "Tool Responses", "messages",
     "conversations", "chat", "tools", "images", "image", "system", "history", "img_list", "meta_instruction",
     "instruction", "input", "output"]
)  # fmt: skip
values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | texts,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys | texts, inner, max_size=5),
    max_leaves=12,
)
names = st.sampled_from(list(FORMATS))


@settings(max_examples=200, deadline=None)
@given(names, st.dictionaries(keys, values, max_size=6))
def test_any_row_gives_a_conversation_or_a_row_error(name, row):
    detect_format([row])
    try:
        found = mapped(name, row, system="s")
    except RowError:
        return
    assert isinstance(found, Conversation)
    assert found.messages[-1].role in ("assistant", "text")


@settings(max_examples=300, deadline=None)
@given(names, st.data())
def test_a_good_row_with_one_value_replaced_gives_a_conversation_or_a_row_error(name, data):
    row, _ = golden(name)
    place, key = row, data.draw(st.sampled_from(sorted(row)))
    while isinstance(place[key], list | dict) and place[key] and data.draw(st.booleans()):
        place = place[key]
        key = data.draw(st.sampled_from(sorted(place) if isinstance(place, dict) else range(len(place))))
    place[key] = data.draw(values)
    try:
        found = mapped(name, row)
    except RowError:
        return
    assert isinstance(found, Conversation)
    assert found.messages[-1].role in ("assistant", "text")


@settings(max_examples=60, deadline=None)
@given(values)
def test_any_json_value_on_a_line_is_a_row_or_a_problem(tmp_path_factory, value):
    file = tmp_path_factory.getbasetemp() / "any.jsonl"
    file.write_text(json.dumps(value) + "\n", encoding="utf-8")
    [read] = read_source(source().model_copy(update={"path": str(file)}))
    assert read.place == (str(file), 1)
    if isinstance(value, dict):
        assert read.row.keys() == value.keys() and not read.problem
    else:
        assert read.row is None and read.problem.startswith("got ") and read.problem.endswith(", expected an object")
