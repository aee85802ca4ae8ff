import pytest

from trainer.config import FormatName
from trainer.data.maps import MAPS, Message, RowError, map_row


def turns(format_name, row):
    return [(message.role, message.content) for message in map_row(format_name, row)]


def test_guanaco_keeps_markdown_headings_in_answers():
    row = {"text": "### Human: How?### Assistant: ### Steps\n1. a\n### More\nb### Human: Thanks### Assistant: Bye"}
    assert turns("guanaco", row) == [
        ("user", "How?"),
        ("assistant", "### Steps\n1. a\n### More\nb"),
        ("user", "Thanks"),
        ("assistant", "Bye"),
    ]


def test_guanaco_joins_two_turns_of_one_role_and_drops_an_unanswered_end():
    row = {"text": "### Human: a### Human: b### Assistant: c### Human: d"}
    assert turns("guanaco", row) == [("user", "a\nb"), ("assistant", "c")]


def test_guanaco_refuses_text_without_markers():
    with pytest.raises(RowError, match="### Human"):
        map_row("guanaco", {"text": "hello"})


@pytest.mark.parametrize(("extra", "question"), [("", "Add"), (None, "Add"), ("1 2", "Add\n1 2")])
def test_alpaca_joins_the_input_only_when_there_is_one(extra, question):
    assert turns("alpaca", {"instruction": "Add", "input": extra, "output": "3"}) == [
        ("user", question),
        ("assistant", "3"),
    ]


def test_alpaca_without_output_has_no_conversation():
    assert map_row("alpaca", {"instruction": "x", "input": "", "output": "<nooutput>"}) == []


def test_messages_keeps_systems_and_the_loss_flag():
    row = {
        "messages": [
            {"role": "system", "content": "s"},
            {"role": "user", "content": "u"},
            {"role": "assistant", "content": "a", "loss": False},
            {"role": "user", "content": "v"},
            {"role": "assistant", "content": "b"},
        ]
    }
    assert map_row("messages", row) == [
        Message("system", "s"),
        Message("user", "u"),
        Message("assistant", "a", False),
        Message("user", "v"),
        Message("assistant", "b", True),
    ]


def test_messages_without_a_question_have_no_conversation():
    assert map_row("messages", {"messages": [{"role": "assistant", "content": "a"}]}) == []


@pytest.mark.parametrize("message", [{"role": "robot", "content": "x"}, {"role": "user"}, "x"])
def test_messages_refuses_what_is_no_message(message):
    with pytest.raises(RowError, match="allowed"):
        map_row("messages", {"messages": [message]})


def test_every_format_of_the_config_has_a_map():
    assert set(MAPS) == set(FormatName.__args__)
