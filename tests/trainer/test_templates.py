"""Every chat format against the makers' strings, written out in tests/golden/templates, and what holds for any text."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from trainer.config.job import TemplateName
from trainer.data.message import Message, RowError
from trainer.data.segment import Segment, render_text
from trainer.data.templates import TEMPLATES, find_template

GOLDEN = Path(__file__).parents[1] / "golden" / "templates"
NAMES = sorted(set(TemplateName.__args__) - {"tokenizer"})
CHAT = [
    Message("system", "You are terse."),
    Message("user", "Where is the Bund?"),
    Message("assistant", "In Shanghai."),
    Message("user", "上海在哪里？"),
    Message("assistant", "在中国。"),
]
# what the model writes around an answer besides its end token: part of the format, so trained
LEAD = {"llama2": " ", "mistral": " ", "vicuna": " ", "chatglm3": "\n "}
TRAIL = {"llama2": " "}
# systems in the middle, or several, have no form there
FIRST_ONLY = ["llama2", "mistral", "gemma", "chatglm3", "vicuna", "alpaca", "deepseek"]

texts = st.text(alphabet=st.sampled_from("ab 中\n\t{}%'\"\\<|>#"), max_size=8) | st.sampled_from(
    ["{{ x }}", "{% endif %}", "{# note #}", "<|im_end|>", "</s>", "[/INST]", " [UNUSED_TOKEN_145]", "USER: ", "\n\n"]
)


@st.composite
def conversations(draw):
    rounds = draw(st.lists(st.tuples(texts, texts, st.booleans()), min_size=1, max_size=3))
    chat = [Message("system", draw(texts))] if draw(st.booleans()) else []
    for question, answer, loss in rounds:
        chat += [Message("user", question), Message("assistant", answer, loss)]
    return chat


@st.composite
def neighbours(draw):
    """Two conversations that differ little, if at all."""
    chat = draw(conversations())
    index = draw(st.integers(0, len(chat) - 1))
    edited, kind = list(chat), draw(st.sampled_from(["text", "loss", "shift", "merge", "same"]))
    message = chat[index]
    if kind == "text":
        edited[index] = message._replace(content=draw(texts))
    elif kind == "loss" and message.role == "assistant":
        edited[index] = message._replace(loss=not message.loss)
    elif kind == "shift" and index:
        moved = draw(st.sampled_from([" ", "\n", "\n\n"]))
        edited[index - 1] = chat[index - 1]._replace(content=chat[index - 1].content + moved)
        chat[index] = message._replace(content=moved + message.content)
    elif kind == "merge" and chat[0].role == "system":
        edited[:2] = [Message("user", f"{chat[0].content}\n\n{chat[1].content}")]
    return chat, edited


def trained(segments: list[Segment]) -> str:
    return "".join(segment.text for segment in segments if segment.trained)


def answers(name: str, chat: list[Message]) -> str:
    end = TEMPLATES[name].answer.end
    return "".join(
        LEAD.get(name, "") + message.content + TRAIL.get(name, "") + end
        for message in chat
        if message.role == "assistant" and message.loss
    )


def test_every_name_of_the_config_has_a_template():
    assert list(TEMPLATES) and sorted(TEMPLATES) == NAMES
    assert all(template.name == name == find_template(name, None).name for name, template in TEMPLATES.items())


@pytest.mark.parametrize("name", NAMES)
def test_template_renders_the_makers_text(name):
    assert render_text(TEMPLATES[name].render(CHAT)) == (GOLDEN / f"{name}.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(chat=conversations())
def test_answers_and_their_end_tokens_are_trained_and_nothing_else(name, chat):
    assert trained(TEMPLATES[name].render(chat)) == answers(name, chat)


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(chat=conversations())
def test_a_prompt_is_the_start_of_the_conversation_and_ends_where_the_answer_begins(name, chat):
    template = TEMPLATES[name]
    rendered = template.render(chat)
    for index, message in enumerate(chat):
        if message.role == "assistant":
            prompt = template.prompt(chat[:index])
            # compared without `trained`: the end token of the answer before may be the prompt's last turn's first
            assert [part.text for part in prompt] == [part.text for part in rendered[: len(prompt)]]
            following = rendered[len(prompt)]
            assert following.text == (LEAD.get(name) or message.content) and following.trained == message.loss


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=30, deadline=None)
@given(pair=neighbours())
def test_rendering_is_injective_on_roles_and_contents(name, pair):
    one, other = pair
    # segments are compared with their flags, as the encoder sees them: the texts alone can be equal, because a message
    # may hold the text of a special token
    assert (one == other) == (TEMPLATES[name].render(one) == TEMPLATES[name].render(other))


@pytest.mark.parametrize("name", NAMES)
def test_a_message_cannot_close_its_turn(name):
    template = TEMPLATES[name]
    forged = template.render([Message("user", "U"), Message("assistant", "A"), Message("user", "V")])
    inner = render_text(forged[len(template.prompt([Message("user", "U")])) :])
    held = template.render([Message("user", "U"), Message("assistant", inner)])
    assert [part.text for part in held if part.content] == ["U", inner]
    assert sum(part.ends_turn for part in held) == 1


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(chat=conversations())
def test_contents_stand_whole_in_segments_of_their_own(name, chat):
    found = [part.text for part in TEMPLATES[name].render(chat) if part.content]
    assert found == [message.content for message in chat]


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=12, deadline=None)
@given(chat=conversations())
def test_special_tokens_stand_alone_and_never_come_from_content(name, chat):
    template = TEMPLATES[name]
    for part in template.render(chat):
        assert not (part.control and part.content)
        if part.control:
            assert part.text in template.required
        elif not part.content:
            assert not any(token in part.text for token in template.required)


@pytest.mark.parametrize("name", NAMES)
def test_a_conversation_may_end_behind_the_end_token_of_each_answer(name):
    segments = TEMPLATES[name].render(CHAT)
    ends = [index for index, part in enumerate(segments) if part.ends_turn]
    assert [segments[index].text for index in ends] == [TEMPLATES[name].answer.end] * 2
    cut = render_text(segments[: ends[0] + 1])
    assert render_text(TEMPLATES[name].render(CHAT[:3])).startswith(cut)


@pytest.mark.parametrize(
    ("name", "begin", "times"),
    [("internlm", "<s>", 1), ("internlm2", "<s>", 1), ("internlm3", "<s>", 1), ("llama2", "<s>", 2),
     ("llama3", "<|begin_of_text|>", 1), ("mistral", "<s>", 1), ("gemma", "<bos>", 1), ("vicuna", "<s>", 1),
     ("alpaca", "<s>", 1), ("deepseek", "<｜begin▁of▁sentence｜>", 1), ("chatglm3", "[gMASK]", 1)],
)  # fmt: skip
def test_the_begin_token_stands_as_often_as_the_maker_writes_it(name, begin, times):
    """Double BOS: trl#1400, OpenRLHF#393."""
    segments = TEMPLATES[name].render(CHAT)
    assert segments[0] == Segment(begin, control=True)
    assert sum(part.control and part.text == begin for part in segments) == times


@pytest.mark.parametrize("name", ["chatml", "qwen", "phi3", "zephyr"])
def test_formats_without_a_begin_token_get_none(name):
    assert render_text(TEMPLATES[name].render(CHAT[1:])).startswith(("<|im_start|>user", "<|user|>"))


def test_xtuners_llama2_deviations_are_not_copied():
    """XTuner closes the system block with its own [/INST] and writes no blank before answers (xtuner#658)."""
    text = render_text(TEMPLATES["llama2"].render(CHAT[:3]))
    assert text == (
        "<s>[INST] <<SYS>>\nYou are terse.\n<</SYS>>\n\nWhere is the Bund? [/INST] In Shanghai. </s>"
    )  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_no_system_text_is_invented(name):
    segments = TEMPLATES[name].render([Message("user", "U"), Message("assistant", "A")])
    text = "".join(part.text for part in segments if not part.control)
    if name in ("vicuna", "alpaca"):  # their sentence is the format; a row's own takes its place
        assert TEMPLATES[name].system.default in text
        own = TEMPLATES[name].render([Message("system", "S"), Message("user", "U")])
        assert TEMPLATES[name].system.default not in render_text(own)
    else:
        assert len(text) < 50 and "system" not in text


@pytest.mark.parametrize("name", sorted(set(NAMES) - set(FIRST_ONLY)))
def test_several_system_messages_are_turns_of_their_own(name):
    template = TEMPLATES[name]
    two = [Message("system", "S1"), Message("system", "S2"), Message("user", "U")]
    assert [part.text for part in template.render(two) if part.content] == ["S1", "S2", "U"]


@pytest.mark.parametrize("name", FIRST_ONLY)
def test_a_system_message_that_has_no_place_is_refused(name):
    with pytest.raises(RowError, match=r"messages\[1\]\.role: got system, expected system as the first message only"):
        TEMPLATES[name].render([Message("user", "U"), Message("system", "S"), Message("assistant", "A")])


@pytest.mark.parametrize("name", ["llama2", "mistral", "gemma"])
def test_a_system_message_that_no_question_follows_is_refused(name):
    with pytest.raises(RowError, match=f"no user message, expected one that {name} can write the system text into"):
        TEMPLATES[name].render([Message("system", "S"), Message("assistant", "A")])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("role", ["text", "narrator"])
def test_a_role_without_a_form_is_refused(name, role):
    with pytest.raises(RowError, match=rf"messages\[0\]\.role: got {role}, expected system, user, assistant or tool"):
        TEMPLATES[name].render([Message(role, "once upon a time")])


@pytest.mark.parametrize("name", NAMES)
def test_answers_stop_at_the_token_that_ends_them(name):
    template = TEMPLATES[name]
    assert template.answer.end in template.stop and template.answer.end in template.required
