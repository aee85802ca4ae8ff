"""Rows of every format against conversations written by hand: tests/golden/formats/NAME.json."""

import json
from pathlib import Path

import pytest

from tests.trainer.conftest import SHARED
from trainer.config.job import FORMAT_ALIASES, FORMATS, Source
from trainer.data.formats.detect import detect_format
from trainer.data.formats.mapper import mapper
from trainer.data.formats.table import TABLE
from trainer.data.message import Conversation, Message, RowError, ToolCall
from trainer.data.sources import read_source
from trainer.errors import ConfigError

GOLDEN = Path(__file__).parents[1] / "golden" / "formats"


def source(**fields):
    return Source(path="unused", **fields)


def mapped(name, row, **fields):
    return mapper(name, source(**fields))(row)


def turns(name, row):
    return [(message.role, message.content) for message in mapped(name, row).messages]


def chat(*said):
    """A `messages` row: (role, content) or whole messages."""
    return {"messages": [{"role": turn[0], "content": turn[1]} if isinstance(turn, tuple) else turn for turn in said]}


def golden(name):
    data = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))
    told = data["conversation"]
    messages = [
        Message(**{**message, "calls": tuple(ToolCall(*call) for call in message.get("calls", ()))})
        for message in told["messages"]
    ]
    beside = [tuple(told.get(name, ())) for name in ("tools", "images", "notes", "unread")]
    return data["row"], Conversation(messages, *beside)


@pytest.mark.parametrize("name", FORMATS)
def test_every_format_gives_the_conversation_that_a_person_wrote(name):
    row, expected = golden(name)
    found = mapped(name, row)
    assert found.messages == expected.messages
    assert found == expected


def test_every_format_of_the_config_has_a_reader_and_a_golden_row():
    assert set(TABLE) == set(FORMATS)
    assert {path.stem for path in GOLDEN.glob("*.json")} == set(FORMATS)
    assert set(FORMAT_ALIASES.values()) <= set(TABLE)


# defects of XTuner's maps (trainer-facts 2.1)


def test_guanaco_keeps_markdown_headings_in_answers_and_does_not_split_on_them():
    row = {"text": "### Human: How?### Assistant: ### Steps\n1. a\n### More\nb### Human: Thanks### Assistant: Bye"}
    assert turns("guanaco", row) == [
        ("user", "How?"), ("assistant", "### Steps\n1. a\n### More\nb"), ("user", "Thanks"), ("assistant", "Bye")
    ]  # fmt: skip


def test_guanaco_two_turns_of_one_role_shift_no_pairs_and_an_odd_last_turn_is_dropped():
    row = {"text": "### Human: a### Human: b### Assistant: c### Human: d"}
    assert turns("guanaco", row) == [("user", "a\nb"), ("assistant", "c")]


@pytest.mark.parametrize(("extra", "question"), [("", "Add"), (None, "Add"), (" \n", "Add"), ("1 2", "Add\n1 2")])
def test_alpaca_joins_the_input_only_when_there_is_one(extra, question):
    row = {"instruction": "Add", "input": extra, "output": "3"}
    assert turns("alpaca", row) == [("user", question), ("assistant", "3")]


def test_alpaca_without_a_column_input_is_complete():
    assert turns("alpaca", {"instruction": "Add", "output": "3"}) == [("user", "Add"), ("assistant", "3")]


def test_messages_weight_of_openais_fine_tuning_api_is_the_loss_flag():
    row = chat(("user", "q"), {"role": "assistant", "content": "a", "weight": 0}, ("user", "r"), ("assistant", "b"))
    assert [message.loss for message in mapped("messages", row).messages] == [True, False, True, True]


def test_messages_two_users_in_a_row_are_joined_by_a_line_end():
    assert turns("messages", chat(("user", "a"), ("user", "b"), ("assistant", "c")))[0] == ("user", "a\nb")


def test_messages_keep_several_systems_also_in_the_middle():
    row = chat(("system", "s"), ("system", "t"), ("user", "u"), ("assistant", "a"), ("system", "m"), ("user", "v"),
               ("assistant", "b"))  # fmt: skip
    assert [role for role, _ in turns("messages", row)] == [
        "system", "system", "user", "assistant", "system", "user", "assistant"
    ]  # fmt: skip


def test_messages_trailing_turns_without_an_answer_are_dropped_with_their_images():
    row = {**chat(("user", "<image>a"), ("assistant", "b"), ("user", "c<image>"), ("system", "d")),
           "images": ["1.jpg", "2.jpg"]}  # fmt: skip
    assert mapped("messages", row) == Conversation(
        [Message("user", "<image>a"), Message("assistant", "b")], images=("1.jpg",), notes=("trailing",)
    )


def test_moss_trains_no_user_and_no_meta_instruction():
    found = mapped("moss", golden("moss")[0]).messages
    assert [message.role for message in found] == [
        "system", "user", "assistant", "user", "assistant", "tool", "assistant"
    ]  # fmt: skip
    assert not any("<eo" in message.content or "<|" in message.content for message in found)


def test_msagent_text_is_never_evaluated(tmp_path):
    mark = tmp_path / "ran"
    for text in (f"[open({str(mark)!r}, 'w')]", f"__import__('os').mknod({str(mark)!r})"):
        with pytest.raises(RowError, match="expected a list, or its JSON text"):
            mapped("msagent", {"conversations": text})
    assert not mark.exists()


def test_msagent_list_may_be_written_as_python_writes_it():
    row, expected = golden("msagent")
    unread = tuple(name for name in expected.unread if name != "id")  # the column is left out here
    assert mapped("msagent", {"conversations": repr(row["conversations"])}) == expected._replace(unread=unread)


@pytest.mark.parametrize("name", [name for name in FORMATS if name not in ("moss", "msagent")])
def test_no_format_makes_up_a_system_text(name):
    row, _ = golden(name)
    said = json.dumps(row, ensure_ascii=False)
    for message in mapped(name, row).messages:
        if message.role == "system":
            assert message.content in said


# tools


def test_tools_are_read_from_text_and_without_their_wrapper_and_nothing_is_added():
    bare = {"name": "f", "strict": True}
    for tools in (json.dumps([bare]), [bare], [{"type": "function", "function": bare}]):
        row = {**chat(("user", "q"), ("assistant", "a")), "tools": tools}
        assert mapped("messages", row).tools == (bare,)
    for tools in (None, "", "[]", []):
        assert mapped("messages", {**chat(("user", "q"), ("assistant", "a")), "tools": tools}).tools == ()


@pytest.mark.parametrize("arguments", ["{}", "", None, {}])
def test_a_call_without_arguments_has_none(arguments):
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]}
    assert mapped("messages", chat(("user", "q"), call)).messages[1].calls == (ToolCall("f", {}),)


@pytest.mark.parametrize("arguments", ['{"x": 1}', {"x": 1}])
def test_arguments_may_be_called_parameters(arguments):
    """As InternLM2 and Llama 3.1 write a call; api_name and parameters are MSAgent's."""
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "f", "parameters": arguments}}]}
    found = mapped("messages", chat(("user", "q"), call))
    assert found.messages[1].calls == (ToolCall("f", {"x": 1}),) and not found.unread


@pytest.mark.parametrize("arguments", ["print(1)", '{"code": "print(1)"}', {"code": "print(1)"}])
def test_a_call_of_the_interpreter_is_code(arguments):
    call = {
        "role": "assistant",
        "content": "I run it.",
        "tool_calls": [{"name": "interpreter", "arguments": arguments}],
    }
    row = chat(("user", "q"), call, {"role": "environment", "content": "1", "name": "interpreter"}, ("assistant", "1"))
    found = mapped("messages", row).messages
    assert found[1] == Message("assistant", "I run it.", calls=(ToolCall("interpreter", "print(1)"),))
    assert found[2] == Message("tool", "1", channel="interpreter")


def test_results_without_ids_keep_their_order():
    call = {"role": "assistant", "tool_calls": [{"name": "f", "arguments": {}}, {"name": "g", "arguments": {}}]}
    row = chat(("user", "q"), call, ("tool", "1"), ("tool", "2"), ("assistant", "a"))
    assert [content for _, content in turns("messages", row)[2:]] == ["1", "2", "a"]


def test_a_function_call_may_end_a_conversation():
    row = {"conversations": [{"from": "human", "value": "q"},
                             {"from": "function_call", "value": '{"name": "f", "arguments": {}}'}]}  # fmt: skip
    assert mapped("sharegpt", row).messages[-1].calls == (ToolCall("f", {}),)


# images


def test_image_marks_are_ordinary_text_in_a_row_without_images():
    assert turns("messages", chat(("user", "What is <image> in RSS?"), ("assistant", "A tag.")))[0][1].count("<image>")


def test_wanjuan_with_no_image_in_the_list_keeps_the_text():
    row = {"content": "a ![](x.jpg) <image>", "img_list": []}
    assert mapped("wanjuan_image_text", row) == Conversation([Message("text", "a ![](x.jpg) <image>")])


def test_wanjuan_images_that_the_text_does_not_show_are_named():
    row = {"content": "a ![](x.jpg)", "img_list": [{"url": "x.jpg"}, {"url": "y.jpg", "caption": "A quay"}]}
    assert mapped("wanjuan_image_text", row).unread == ("img_list[].caption", "img_list[].url")


# what a source adds


def test_a_sources_system_is_put_in_front_only_where_there_is_none():
    plain, own = chat(("user", "q"), ("assistant", "a")), chat(("system", "own"), ("user", "q"), ("assistant", "a"))
    assert mapped("messages", plain, system="told").messages[0] == Message("system", "told")
    assert mapped("messages", own, system="told").messages[0] == Message("system", "own")
    assert mapped("text", {"text": "document"}, system="told").messages == [Message("text", "document")]


def test_columns_under_other_names_are_read_and_named_in_errors():
    fields = {"columns": {"instruction": "q", "output": "instruction"}}
    assert [message.content for message in mapped("alpaca", {"q": "1", "instruction": "2"}, **fields).messages] == [
        "1", "2"
    ]  # fmt: skip
    with pytest.raises(RowError, match=r"^instruction: got 3, expected text$"):
        mapped("alpaca", {"q": "1", "instruction": 3}, **fields)
    with pytest.raises(RowError, match=r"^q: got only the columns a, expected a column q with text$"):
        mapped("alpaca", {"a": "1"}, columns={"instruction": "q", "output": "a"})


def test_a_column_that_the_format_has_not_is_an_error_with_those_it_has():
    with pytest.raises(ConfigError, match="columns: got instrution, allowed: instruction, output, input, history, sys"):
        mapper("alpaca", source(columns={"instrution": "q"}))


def own_conversation(row):
    return Conversation([Message("user", row["q"]), Message("assistant", row["a"]), Message("user", "dropped")])


def own_messages(row):
    return chat(("user", row["q"]), ("assistant", row["a"]))


def own_nothing(row):
    return row["q"]


@pytest.mark.parametrize("function", ["own_conversation", "own_messages"])
def test_a_function_of_ones_own_is_a_format(function):
    read = mapper(f"{__name__}:{function}", source(columns={"a": "answer"}, system="s"))
    assert read({"q": "1", "answer": "2"}).messages == [
        Message("system", "s"), Message("user", "1"), Message("assistant", "2")
    ]  # fmt: skip
    with pytest.raises(RowError, match=rf"{function}: got KeyError: 'q', expected a conversation"):
        read({})
    with pytest.raises(RowError, match="an empty answer"):
        read({"q": "1", "answer": " "})


def test_a_function_that_gives_something_else_or_is_not_there_is_an_error():
    with pytest.raises(RowError, match="got text 'x', expected a Conversation"):
        mapper(f"{__name__}:own_nothing", source())({"q": "x"})
    for name in (f"{__name__}:absent", "no_such_module_here:f"):
        with pytest.raises(ConfigError, match=rf"got {name}, allowed: a function that can be imported"):
            mapper(name, source())


# real rows


@pytest.mark.parametrize(
    ("file", "name", "count"),
    [
        ("alpaca_en_demo.json", "alpaca", 999),
        ("alpaca_zh_demo.json", "alpaca", 1000),
        ("identity.json", "alpaca", 91),
        ("glaive_toolcall_en_demo.json", "sharegpt", 300),
        ("mllm_demo.json", "messages", 6),
        ("c4_demo.jsonl", "text", 300),
    ],
)
def test_every_real_row_is_read(file, name, count):
    path = SHARED / "sft" / file
    if not path.exists():
        pytest.skip(f"no real rows: {path} is absent")
    rows = [read.row for read in read_source(Source(path=str(path)))]
    assert {detect_format([row]) for row in rows} == {name}
    found = [mapped(name, row) for row in rows]
    assert len(found) == count
    if file.startswith("glaive"):
        assert sum(len(message.calls) for each in found for message in each.messages) == 211
        assert sum(len(each.tools) for each in found) == 219
    if file.startswith("mllm"):
        assert found[0].images == ("mllm_demo_data/1.jpg", "mllm_demo_data/1.jpg")
