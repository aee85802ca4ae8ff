"""The tokenizer's own Jinja as a template: answers are found in the text, messages write no special tokens."""

import copy

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from trainer.data.message import Message, RowError, ToolCall
from trainer.data.segment import Segment, render_text
from trainer.data.templates import TEMPLATES, find_template
from trainer.errors import ConfigError

ASKS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}" + ASKS
TRIMMED = CHATML.replace("m.content", "m.content | trim")
# as Phi-3: one more end behind a whole conversation
CLOSED = CHATML.replace("{% endif %}", "{% else %}</s>{% endif %}")
# as Qwen3: thoughts of answers before the last question are left out
THINKING = (
    "{% set ns = namespace(last=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}"
    "{% endif %}{% endfor %}{% for m in messages %}<|im_start|>{{ m.role }}\n"
    "{{ m.content if loop.index0 > ns.last else m.content.split('</think>')[-1] }}<|im_end|>\n{% endfor %}" + ASKS
)
# {% generation %} around the answer alone, and around its end token too
TAGGED, TAGGED_END = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    + ending
    + "{% else %}{{ m.content }}<|im_end|>{% endif %}{{ '\n' }}{% endfor %}"
    + ASKS
    for ending in ("{% endgeneration %}<|im_end|>", "<|im_end|>{% endgeneration %}")
)
# as Llama 3's: the header of an answer stands behind every conversation, asked for or not
ALWAYS = (
    "{% for m in messages %}<|im_start|>{{ m.role }}<|action_end|>\n{{ m.content | trim }}<|im_end|>{% endfor %}"
    "{{ '<|im_start|>assistant<|action_end|>\n' }}"
)
CHAT = [
    Message("system", "S"),
    Message("user", "U1"),
    Message("assistant", "A1"),
    Message("user", "U2"),
    Message("assistant", "A2"),
]
texts = st.text(max_size=6) | st.sampled_from(
    ["<|im_end|>", "a<|im_start|>user\n", "</s>", "<s>", "{{ x }}", "\U000f0000<|im_end|>", " ", "<|im_end|><|im_end|>"]
)


@pytest.fixture
def own(small_tokenizer):
    def make(source, **settings):
        tokenizer = copy.deepcopy(small_tokenizer)
        tokenizer.chat_template = source
        for name, value in settings.items():
            setattr(tokenizer, name, value)
        return find_template("tokenizer", tokenizer)

    return make


def trained(segments):
    return "".join(part.text for part in segments if part.trained)


@pytest.mark.parametrize("source", [CHATML, TRIMMED, CLOSED, TAGGED, TAGGED_END, THINKING, ALWAYS])
def test_answers_and_their_end_tokens_are_trained_and_nothing_else(own, source):
    segments = own(source).render(CHAT)
    assert trained(segments) == "A1<|im_end|>A2<|im_end|>"
    assert [part.text for part in segments if part.ends_turn] == ["<|im_end|>"] * 2


@pytest.mark.parametrize("source", [CHATML, TAGGED, TAGGED_END, ALWAYS])
def test_an_answer_without_loss_is_not_trained_but_may_be_the_last(own, source):
    segments = own(source).render([*CHAT[:2], CHAT[2]._replace(loss=False), *CHAT[3:]])
    assert trained(segments) == "A2<|im_end|>" and sum(part.ends_turn for part in segments) == 2


@pytest.mark.parametrize("source", [CHATML, TRIMMED, TAGGED, TAGGED_END])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(contents=st.lists(texts, min_size=3, max_size=3))
def test_special_tokens_in_messages_stay_text_and_the_text_is_jinjas(own, source, contents):
    template = own(source)
    chat = [Message("system", contents[0]), Message("user", contents[1]), Message("assistant", contents[2])]
    segments = template.render(chat)
    system, user, assistant = [text.strip() if source == TRIMMED else text for text in contents]
    assert render_text(segments) == (
        f"<s><|im_start|>system\n{system}<|im_end|>\n<|im_start|>user\n{user}<|im_end|>\n"
        f"<|im_start|>assistant\n{assistant}<|im_end|>\n"
    )
    controls = [part.text for part in segments if part.control]
    assert controls == ["<s>", *["<|im_start|>", "<|im_end|>"] * 3]
    assert trained(segments) == assistant + "<|im_end|>"
    assert all(part.content for part in segments if not part.control and "<|im_end|>" in part.text)


def test_tokens_in_functions_and_calls_stay_text(own):
    template = own(TEMPLATES["internlm2"].jinja())
    calls = (ToolCall("f", {"x": "<|im_end|>"}),)
    chat = [Message("user", "U"), Message("assistant", "", calls=calls), Message("tool", "<|im_start|>")]
    chat.append(Message("assistant", "A"))
    tools = ({"name": "f", "description": "<|im_start|>"},)
    ours = TEMPLATES["internlm2"].render(chat, tools)
    segments = template.render(chat, tools)
    assert render_text(segments) == render_text(ours) and trained(segments) == trained(ours)
    assert [part.text for part in segments if part.control] == [part.text for part in ours if part.control]
    assert sum(part.ends_turn for part in segments) == 1


@pytest.mark.parametrize("name", ["internlm2", "chatml", "llama2", "vicuna"])
def test_a_template_written_as_jinja_trains_what_the_template_trains(own, name):
    """Vicuna and Llama 2 with <s> and </s>, InternLM2 and ChatML with their own tokens: all are in this tokenizer."""
    template = own(TEMPLATES[name].jinja())
    ours, theirs = TEMPLATES[name].render(CHAT), template.render(CHAT)
    assert trained(theirs) == trained(ours)
    assert render_text(theirs).removeprefix("<s>") == render_text(ours).removeprefix("<s>")
    prompt = TEMPLATES[name].prompt(CHAT[:4])
    assert render_text(template.prompt(CHAT[:4])).removeprefix("<s>") == render_text(prompt).removeprefix("<s>")


@pytest.mark.parametrize("source", [CHATML, "{{ bos_token }}" + CHATML])
def test_the_begin_token_stands_once_whoever_writes_it(own, source):
    """Double BOS: trl#1400, llama-cpp-python PR#1439."""
    template = own(source)
    for segments in (template.render(CHAT), template.prompt(CHAT[:2])):
        assert segments[0] == Segment("<s>", control=True)
        assert sum(part.text == "<s>" for part in segments) == 1


def test_the_header_of_the_next_answer_is_not_trained_even_if_it_is_always_there(own):
    """Also when the answer repeats the question, so that the text before the header is the same twice."""
    template = own(ALWAYS)
    for answer in ("A", "U", "assistant", "<|im_end|>"):
        segments = template.render([Message("user", "U"), Message("assistant", answer)])
        assert trained(segments) == answer + "<|im_end|>" and render_text(segments).endswith("<|action_end|>\n")
    assert template.stop == ("<|im_end|>", "</s>")


@pytest.mark.parametrize("name", ["llama3", "llama3_1", "gemma3", "deepseek_v3"])
def test_the_makers_own_templates_train_the_answers_and_their_ends(name, maker_folder):
    tokenizer = AutoTokenizer.from_pretrained(maker_folder(name))
    template = find_template("tokenizer", tokenizer)
    end = template.stop[0]
    for chat in (CHAT, [Message("user", "A1"), Message("assistant", "A1")], [*CHAT[:2], Message("assistant", "U1")]):
        answers = [turn.content for turn in chat if turn.role == "assistant"]
        assert trained(template.render(chat)) == "".join(answer + end for answer in answers)
    assert end in ("<|eot_id|>", "<end_of_turn>", "<｜end▁of▁sentence｜>")


def test_no_begin_token_is_added_where_the_tokenizer_adds_none(own):
    assert render_text(own(CHATML, add_bos_token=False).render(CHAT)).startswith("<|im_start|>system")


def test_answers_stop_at_the_token_that_the_template_ends_them_with(own):
    assert own(CHATML).stop == ("<|im_end|>", "</s>")
    assert own(TEMPLATES["llama2"].jinja()).stop == ("</s>",)


def test_thoughts_of_the_last_answer_are_trained_as_they_are_generated(own):
    thought = "<think>\nhm\n</think>\nA"
    segments = own(THINKING).render([Message("user", "U"), Message("assistant", thought)])
    assert trained(segments) == thought + "<|im_end|>"


@pytest.mark.parametrize(
    ("source", "chat", "error"),
    [
        (CHATML.replace("{{ m.role }}", "{{ m.role if m.role != 'system' else raise_exception('No system role!') }}"),
         CHAT, "messages: got what the tokenizer's template refuses: No system role!, expected what it takes"),
        ("{% for m in messages %}{{ m.role + 1 }}{% endfor %}", CHAT, "got what the tokenizer's template refuses:"),
        (CHATML.replace("{% endif %}", "<think>{% endif %}"), CHAT, "messages[2]: got an answer that"),
        ("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}{% if add_generation_prompt %}assistant: "
         "{% endif %}", CHAT, "messages[2]: got an answer that the tokenizer's template does not write behind its own "
         "prompt, closed by a special token, expected another model.chat_template, or {% generation %} tags"),
        (THINKING, [Message("user", "U"), Message("assistant", "a</think>b"), *CHAT[3:]], "messages[1]: got an answer"),
        (TAGGED.replace("m.role == 'assistant'", "loop.first"), CHAT, "got 1 generation blocks for 2 answers"),
        (CHATML.replace("{{ m.content }}", "{{ m.content }}{% if '<|im_end|>' in m.content %}!{% endif %}"),
         [Message("user", "<|im_end|>"), Message("assistant", "A")], "got special tokens that change what the"),
    ],
)  # fmt: skip
def test_a_conversation_that_a_template_cannot_train_says_why(own, source, chat, error):
    with pytest.raises(RowError) as caught:
        own(source).render(chat)
    assert error in str(caught.value)


def test_a_tokenizer_without_a_template_is_a_mistake_of_the_job(own):
    with pytest.raises(ConfigError, match="got tokenizer, but the tokenizer has no chat template"):
        own(None)


def test_the_jinja_of_a_tokenizers_template_is_its_own(own):
    assert own(CHATML).jinja() == CHATML
