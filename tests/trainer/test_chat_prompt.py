"""What a chat sends is what training encodes: the prompt, the one beginning, the ends, and the text that comes back."""

import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from tests.trainer.conftest import load_tokenizer
from trainer.chat.answer import Answerer, SamplingParameters, batch_inputs, stop_ids
from trainer.config.job import Sampling
from trainer.data.calls import read_answer
from trainer.data.control import MODEL_MARKS
from trainer.data.encode import Encoder
from trainer.data.message import Message, ToolCall
from trainer.data.templates import TEMPLATES
from trainer.data.text_stream import TextStream, read_segments

NAMES = sorted(TEMPLATES)
WITH_TOOLS = sorted(name for name, template in TEMPLATES.items() if template.tools)
STARTS = ("<s>", "<bos>", "<|begin_of_text|>", "<｜begin▁of▁sentence｜>")
NO_TEXT = {"llama3", "mistral"}  # which write none beside a call
CHAT = [
    Message("system", "Be brief."),
    Message("user", "One?"),
    Message("assistant", " 1 你好"),
    Message("user", "Two <|im_end|>?"),
    Message("assistant", "2\n\n  two "),
]
MANY = settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
# SentencePiece writes a blank as ▁, and takes that character of a text for a blank
TEXT = st.text(st.characters(codec="utf-8", exclude_characters="\r\x00\ufffd▁"), max_size=12)


@pytest.fixture(scope="module")
def tokenizer(all_tokens_folder):
    """With the special tokens of all templates and their tool forms."""
    found = AutoTokenizer.from_pretrained(all_tokens_folder)
    tokens = {token for name in WITH_TOOLS for token in TEMPLATES[name].tools.tokens} - set(found.get_vocab())
    found.add_tokens(sorted(tokens), special_tokens=True)
    return found


def answerer(tokenizer, name, **more):
    encoder = Encoder(tokenizer, TEMPLATES[name])
    return Answerer(encoder, tokenizer, SamplingParameters(Sampling()), lambda: False, **more)


def asked_and_answered(encoder, messages, index, tools=()):
    """The ids of the prompt in front of an answer, and the ids of the answer with its end, as training has them."""
    prompt = encoder.prompt_ids(encoder.template.prompt(messages[:index], tools))
    (whole,) = encoder.encode([encoder.template.render(messages[: index + 1], tools)])
    spans = list(whole.spans)
    start, end = spans.pop()
    while spans and spans[-1][1] == start:  # text and end token are apart where a message holds a token's text
        start = spans.pop()[0]
    return prompt, whole.ids[:start], whole.ids[start:end]


@pytest.mark.parametrize("name", NAMES)
def test_pain_3_the_prompt_of_a_chat_is_the_start_of_what_training_encodes(name, tokenizer):
    encoder = Encoder(tokenizer, TEMPLATES[name])
    for index in (2, 4):
        prompt, before, _ = asked_and_answered(encoder, CHAT, index)
        assert prompt == before


@pytest.mark.parametrize("family", ["internlm", "internlm2"])
def test_pain_3_holds_for_the_real_tokenizers(family, request):
    real = load_tokenizer(str(request.getfixturevalue(f"real_{family}")))
    for index in (2, 4):
        prompt, before, answer = asked_and_answered(Encoder(real, TEMPLATES[family]), CHAT, index)
        assert prompt == before
        made = answerer(real, family)
        assert made.message(prompt, made.read(answer).ids, has_tools=False).content == CHAT[index].content
        assert prompt.count(real.bos_token_id) == 1


@pytest.mark.parametrize("name", NAMES)
def test_pain_4_a_prompt_has_one_beginning_of_sequence(name, tokenizer):
    template = TEMPLATES[name]
    ids = Encoder(tokenizer, template).prompt_ids(template.prompt(CHAT[:4]))
    starts = {token for token in STARTS if token in template.required}
    found = [number for number in ids if number in tokenizer.convert_tokens_to_ids(sorted(starts))]
    expected = 2 if name == "llama2" else int(bool(starts))  # Meta's own form has one a question
    assert len(found) == expected and bool(starts) == (name not in {"chatml", "qwen", "phi3", "zephyr", "chatglm3"})
    assert not found or ids[0] == found[0]


@pytest.mark.parametrize("name", NAMES)
def test_pain_2_an_answer_ends_at_every_end_token_of_its_format(name, tokenizer):
    made = answerer(tokenizer, name)
    trained_end = asked_and_answered(made.encoder, CHAT, 2)[2][-1]
    assert trained_end in made.stops
    for token in TEMPLATES[name].stop:
        number = tokenizer.get_vocab().get(token)
        if number is not None:
            assert made.read([5, 6, number, number, 7]) == ([5, 6], "stop")
    assert made.read([5, 6]) == ([5, 6], "length")


def test_stop_ids_are_those_that_the_tokenizer_knows(tokenizer):
    assert stop_ids(tokenizer, ("<|im_end|>", "<|nobody|>")) == sorted(
        {tokenizer.eos_token_id, tokenizer.convert_tokens_to_ids("<|im_end|>")}
    )


@pytest.mark.parametrize("name", NAMES)
@MANY
@given(content=TEXT)
@example(content="<unk>")
def test_an_answer_comes_back_letter_for_letter(name, tokenizer, content):
    """A mark that its maker calls special, as this tokenizer does, is kept from readers (trainer/data/control.py)."""
    assume(not any(mark in content for mark in MODEL_MARKS))
    made = answerer(tokenizer, name)
    messages = [Message("user", "One?"), Message("assistant", content)]
    prompt, _, answer = asked_and_answered(made.encoder, messages, 1)
    assert made.message(prompt, made.read(answer).ids, has_tools=False) == messages[1]


ARGUMENTS = st.dictionaries(
    st.from_regex(r"arg_[a-z]{1,5}", fullmatch=True),
    st.one_of(TEXT, st.integers(), st.booleans(), st.lists(TEXT, max_size=2)),
    max_size=2,
)
CALLS = st.lists(st.builds(ToolCall, st.sampled_from(["get_weather", "天气"]), ARGUMENTS), min_size=1, max_size=2)
CODE = st.builds(ToolCall, st.just("interpreter"), TEXT.map(lambda text: f"print({text!r})"))


@pytest.mark.parametrize("name", WITH_TOOLS)
@MANY
@given(content=TEXT, calls=CALLS, code=CODE, has_code=st.booleans())
def test_a_generated_call_is_read_as_training_writes_it(name, tokenizer, content, calls, code, has_code):
    if has_code and name in {"internlm2", "internlm3", "chatglm3"}:
        calls = [code]
    if name in {"llama3", "chatglm3"}:
        calls = calls[:1]
    made = answerer(tokenizer, name)
    messages = [Message("user", "U"), Message("assistant", "" if name in NO_TEXT else content, calls=tuple(calls))]
    prompt, _, answer = asked_and_answered(made.encoder, messages, 1)
    assert made.message(prompt, made.read(answer).ids, has_tools=True) == messages[1]


@pytest.mark.parametrize(
    "written",
    [
        "<|action_start|><|plugin|>\nno json<|action_end|>",
        '<|action_start|><|plugin|>\n{"name": "f"}<|action_end|>',
        '<|action_start|><|plugin|>\n{"name": "f", "parameters": {}}',
        '<|action_start|>{"name": "f", "parameters": {}}<|action_end|>',
        '<|action_start|><|plugin|>\n{"name": "f", "parameters": []}<|action_end|>',
        '<|action_start|><|plugin|>\n{"name": "f", "parameters": {}}<|action_end|> and more',
    ],
)
def test_what_is_not_of_the_form_is_text(written, tokenizer):
    template = TEMPLATES["internlm2"]
    segments = read_segments(tokenizer, [], tokenizer.backend_tokenizer.encode(written, add_special_tokens=False).ids)
    found = read_answer(template, segments, {"<|action_start|>", "<|action_end|>", "<|plugin|>"})
    assert found.calls == () and "<|" not in found.content


def test_a_call_written_as_ordinary_text_is_text(tokenizer):
    made = answerer(tokenizer, "internlm2")
    said = '<|action_start|><|plugin|>\n{"name": "f", "parameters": {}}<|action_end|>'
    prompt, _, answer = asked_and_answered(made.encoder, [Message("user", "U"), Message("assistant", said)], 1)
    assert made.message(prompt, made.read(answer).ids, has_tools=True) == Message("assistant", said)


@pytest.mark.parametrize("name", ["llama3", "chatml"])
def test_json_is_no_call_where_no_function_was_named(name, tokenizer):
    made = answerer(tokenizer, name)
    messages = [Message("user", "U"), Message("assistant", "", calls=(ToolCall("f", {}),))]
    prompt, _, answer = asked_and_answered(made.encoder, messages, 1)
    assert not made.message(prompt, made.read(answer).ids, has_tools=False).calls


def test_a_stream_shows_no_half_characters_and_all_of_them(tokenizer):
    text = " 你好 😀𓀀  é"
    ids = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False).ids
    stream = TextStream(tokenizer, [tokenizer.bos_token_id])
    pieces = [segment.text for number in ids for segment in stream.put(number)]
    assert "".join(pieces) == text and stream.end() == []
    assert not any("\ufffd" in piece for piece in pieces)
    torn = TextStream(tokenizer, [tokenizer.bos_token_id])
    assert not [segment for number in ids[:-1] for segment in torn.put(number) if "\ufffd" in segment.text]


def test_bytes_that_never_become_a_character_are_shown_at_the_end(tokenizer):
    number = tokenizer.convert_tokens_to_ids("<0xF0>")
    stream = TextStream(tokenizer, [tokenizer.bos_token_id])
    assert stream.put(number) == []
    assert [segment.text for segment in stream.end()] == ["\ufffd"]


def test_a_batch_is_padded_on_the_left():
    import torch

    found = batch_inputs(torch.nn.Linear(1, 1), [[5, 6, 7], [8]], 2)
    assert found["input_ids"].tolist() == [[5, 6, 7], [2, 2, 8]]
    assert found["attention_mask"].tolist() == [[1, 1, 1], [0, 0, 1]]
