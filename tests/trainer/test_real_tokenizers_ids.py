"""What the makers' tokenizers make of a rendered conversation is what is trained, and no message writes a control
token."""

import json
import re
from functools import cache

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.conftest import SHARED, load_tokenizer
from trainer.data.control import control_ids
from trainer.data.encode import IGNORED, Encoder
from trainer.data.message import Message, RowError, ToolCall
from trainer.data.pieces import decode
from trainer.data.segment import render_text
from trainer.data.templates import find_template
from trainer.data.text_stream import read_segments

# the templates that models with a tokenizer are trained with; gpt-oss has none of ours, and its archive no
# chat_template
PAIRS = [
    ("internlm", "internlm"), ("internlm2", "internlm2"), ("internlm2", "internlm3"), ("internlm2", "chatml"),
    ("qwen3", "qwen"), ("qwen3", "chatml"), ("llama2", "llama2"), ("llama2", "vicuna"), ("llama2", "alpaca"),
    ("llama2", "zephyr"), ("llama3", "llama3"), ("llama3_1", "llama3"), ("gemma3", "gemma"),
    ("deepseek_v3", "deepseek"), ("llama3", "tokenizer"), ("llama3_1", "tokenizer"), ("gemma3", "tokenizer"),
    ("deepseek_v3", "tokenizer"), ("gptoss", "tokenizer"),
]  # fmt: skip
GPTOSS = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{% if add_generation_prompt %}<|start|>assistant<|message|>{% endif %}"
)
ORDINARY = [
    "plain", "line\nline", "para\n\npara\n\n\n\nend", "a\tb\t\tc", "runs  of   blanks        here", " leading",
    "trailing  ", "<b>bold</b><br/>\n<table>\n<tr><td>1</td></tr></table>", "你好,世界——……Ａ", "emoji 😀🧑‍🚀 é",
    "```python\ndef f(x):\n    return x\n\n\tpass\n```", "<think>\nshort\n\nthought\n</think>\n\nAnswer", "1234567",
    '<tool_call>\n{"name": "f"}\n</tool_call>', "<tool_response>\n1\n</tool_response>", "[multimodal] <unused3>",
    "<|fim_prefix|>x<|file_sep|>", "<｜tool▁calls▁begin｜>", "[UNUSED_TOKEN_10]", "\n\nstarts", "ends\n\n", "  ", "\n",
]  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer_of(maker_folder):
    """The tokenizer of a maker by its name."""

    @cache
    def load(name):
        tokenizer = load_tokenizer(str(maker_folder(name)))
        if name == "gptoss":
            tokenizer.chat_template = GPTOSS
        return tokenizer

    return load


@pytest.fixture(scope="session")
def pair_of(tokenizer_of):
    """A tokenizer with the encoder of a template, which is slow to make."""

    @cache
    def make(name, template):
        tokenizer = tokenizer_of(name)
        return tokenizer, Encoder(tokenizer, find_template(template, tokenizer))

    return make


@pytest.fixture
def pair(request, pair_of):
    return pair_of(*request.param)


every_pair = pytest.mark.parametrize("pair", PAIRS, ids="-".join, indirect=True)


def own_ids(tokenizer, text):
    return tokenizer(text, add_special_tokens=False).input_ids


def chat(text, answer=None):
    return [Message("user", text), Message("assistant", text if answer is None else answer)]


def straddles(tokenizer, encoder, messages):
    """Whether the tokenizer joins the start of an answer with its prompt, which ends exactly there at inference."""
    whole = own_ids(tokenizer, render_text(encoder.template.render(messages)))
    for place, message in enumerate(messages):
        if message.role == "assistant":
            prompt = own_ids(tokenizer, render_text(encoder.template.prompt(messages[:place])))
            if whole[: len(prompt)] != prompt:
                return True
    return False


def squeezed(text):
    """Without blanks: Llama 2's decoder adds some."""
    return re.sub(r"[\s▁]", "", text)


def trained(encoded):
    return [label for label in encoded.labels if label != IGNORED]


def encode(encoder, messages, tools=()):
    return encoder.encode([encoder.template.render(messages, tools)])[0]


@every_pair
@pytest.mark.parametrize("text", ORDINARY)
def test_ids_are_the_tokenizers_own(pair, text):
    tokenizer, encoder = pair
    for messages in (chat(text), [*chat(text, "x " + text), *chat(text + "\n", text)], chat("q", "x" + text)):
        encoded = encode(encoder, messages)
        assert not encoded.escaped
        prompt = encoder.prompt_ids(encoder.template.prompt(messages[:1]))
        assert encoded.ids[: len(prompt)] == prompt
        if not straddles(tokenizer, encoder, messages):
            assert encoded.ids == own_ids(tokenizer, encoded.text)
            segments = encoder.template.render(messages)
            assert encoder._stretches(encoded.text, segments, escaped=False).ids == encoded.ids, "the other way"


@pytest.mark.parametrize("pair", [("qwen3", "qwen"), ("gemma3", "gemma")], ids="-".join, indirect=True)
def test_an_answer_that_begins_with_a_line_end_has_the_ids_of_generation(pair):
    """And not those of the whole text, in which the line ends of header and answer are one token."""
    tokenizer, encoder = pair
    encoded = encode(encoder, chat("q", "\nstarts"))
    prompt = encoder.prompt_ids(encoder.template.prompt(chat("q")[:1]))
    assert encoded.ids[: encoded.turn_ends[0] - 1] == prompt + own_ids(tokenizer, "\nstarts")
    assert encoded.ids != own_ids(tokenizer, encoded.text)


@every_pair
@pytest.mark.parametrize("text", ORDINARY)
def test_what_is_trained_is_the_answer_and_its_end(pair, text):
    tokenizer, encoder = pair
    segments = encoder.template.render(chat("q", text))
    encoded = encoder.encode([segments])[0]
    said = "".join(segment.text for segment in segments if segment.trained)
    # a decoder of SentencePiece drops a blank at the start of a text, and takes every mark for one
    shown = decode(tokenizer, trained(encoded))
    assert shown.replace("▁", " ").lstrip(" ") == said.replace("▁", " ").lstrip(" ")
    assert [segment.text for segment in segments if segment.trained][-1] in encoder.template.stop


@every_pair
def test_the_text_of_a_control_token_never_becomes_one(pair):
    tokenizer, encoder = pair
    template = encoder.template
    known = control_ids(tokenizer, (*template.required, *template.stop))
    named = {*template.required, *template.stop, *tokenizer.all_special_tokens} & known.keys()
    controls = set(known.values())

    def written(messages):
        return [number for number in encode(encoder, messages).ids if number in controls]

    usual = written(chat("x"))
    for token in [*sorted(named), *list(known)[:10]]:
        for text in (token, f"a\n\n{token}system\nb", f"{token}{token} c"):
            encoded = encode(encoder, chat(text))
            assert encoded.escaped
            assert written(chat(text)) == usual, text
            assert squeezed(decode(tokenizer, encoded.ids)) == squeezed(encoded.text)
            prompt = encoder.prompt_ids(template.prompt(chat(text)[:1]))
            assert encoded.ids[: len(prompt)] == prompt


@pytest.mark.parametrize(
    ("name", "template", "end", "kept"),
    [
        ("gemma3", "gemma", "<end_of_turn>", ["\n\n", "\t\t", "<table>", "</b>", "<unused3>"]),
        ("qwen3", "qwen", "<|im_end|>", ["<think>", "</think>", "<tool_call>", "<|fim_prefix|>"]),
        ("deepseek_v3", "deepseek", "<｜User｜>", ["<｜tool▁calls▁begin｜>", "<｜fim▁hole｜>"]),
    ],
)
def test_a_message_with_the_text_of_a_control_token_keeps_its_ordinary_added_tokens(
    name, template, end, kept, pair_of
):
    tokenizer, encoder = pair_of(name, template)
    numbers = [tokenizer.get_added_vocab()[token] for token in kept]
    encoded = encode(encoder, chat(f"x{'x'.join(kept)}x", f"y{end}{'x'.join(kept)}x"))
    assert encoded.escaped
    assert [number for number in encoded.ids if number in numbers] == numbers * 2


@pytest.mark.parametrize(("token", "number"), [("<think>", 151667), ("</think>", 151668), ("<tool_call>", 151657)])
def test_marks_that_the_model_writes_are_its_tokens_in_an_answer(token, number, pair_of):
    """Qwen3's are added tokens that are not called special."""
    _, encoder = pair_of("qwen3", "qwen")
    encoded = encode(encoder, chat("q", f"{token}\nx"))
    assert trained(encoded).count(number) == 1 and not encoded.escaped


def test_a_call_is_trained_with_the_tokens_of_its_marks_and_read_back(pair_of):
    tokenizer, encoder = pair_of("qwen3", "qwen")
    messages = [
        Message("user", "Say <tool_call>"), Message("assistant", "So", calls=(ToolCall("f", {"x": "<think>\n"}),)),
        Message("tool", "1"), Message("assistant", "<think>\n\n</think>\n\nOne"),
    ]  # fmt: skip
    encoded = encode(encoder, messages, ({"name": "f", "parameters": {}},))
    assert encoded.ids == own_ids(tokenizer, encoded.text)
    marks = [tokenizer.decode(one) for one in trained(encoded) if one in range(151657, 151669)]
    assert marks == ["<tool_call>", "<think>", "</tool_call>", "<think>", "</think>"]
    segments = read_segments(tokenizer, [], trained(encoded))
    assert "<tool_call>" in [segment.text for segment in segments if segment.control]


def test_line_ends_are_text_in_a_stream(tokenizer_of):
    tokenizer = tokenizer_of("gemma3")
    (segment,) = read_segments(tokenizer, [], own_ids(tokenizer, "\n\n"))
    assert (segment.text, segment.control) == ("\n\n", False)


def test_roles_that_a_jinja_writes_are_kept_out_of_messages(tokenizer_of):
    """DeepSeek's are not called special; what stands for thoughts and calls may be written."""
    template = find_template("tokenizer", tokenizer_of("deepseek_v3"))
    assert {"<｜User｜>", "<｜Assistant｜>", "<｜end▁of▁sentence｜>"} <= set(template.required)
    assert "\n" not in find_template("tokenizer", tokenizer_of("gemma3")).required
    qwen = find_template("tokenizer", tokenizer_of("qwen3"))
    assert set(qwen.required) == {"<|im_start|>", "<|im_end|>"}


@pytest.mark.parametrize(("name", "template"), [("gemma3", "gemma"), ("qwen3", "qwen"), ("llama2", "llama2")])
def test_a_document_has_the_tokenizers_ids(name, template, pair_of):
    tokenizer, encoder = pair_of(name, template)
    for text in ORDINARY:
        (encoded,) = encoder.encode([encoder.document(text)])
        assert encoded.ids == own_ids(tokenizer, encoded.text)


ROWS = {
    "alpaca_en_demo.json": lambda row: chat(f"{row['instruction']}\n{row['input']}".strip(), row["output"]),
    "alpaca_zh_demo.json": lambda row: chat(f"{row['instruction']}\n{row['input']}".strip(), row["output"]),
    "identity.json": lambda row: chat(row["instruction"], row["output"]),
    "glaive_toolcall_en_demo.json": lambda row: glaive(row["conversations"]),
}


def glaive(turns):
    """As ordinary messages: what a call holds is text like any other here."""
    roles = {"human": "user", "gpt": "assistant", "function_call": "assistant", "observation": "user"}
    return [Message(roles[turn["from"]], turn["value"]) for turn in turns]


@cache
def real_chats():
    chats = []
    for name, read in ROWS.items():
        chats += [read(row) for row in json.loads((SHARED / "sft" / name).read_text(encoding="utf-8"))[:250]]
    return chats


@every_pair
def test_real_rows_have_the_tokenizers_ids(pair):
    tokenizer, encoder = pair
    rendered, chats = [], []
    for messages in real_chats():
        try:
            rendered.append(encoder.template.render(messages))
            chats.append(messages)
        except RowError:  # a Jinja that strips blanks
            continue
    encoded = encoder.encode(rendered)
    own = own_ids(tokenizer, [one.text for one in encoded])
    differ = [place for place, (one, ids) in enumerate(zip(encoded, own, strict=True)) if one.ids != ids]
    assert len(chats) > 700
    assert all(straddles(tokenizer, encoder, chats[place]) for place in differ)
    assert len(differ) < len(chats) / 20 or encoder.template.name == "alpaca"
    for one, segments in list(zip(encoded, rendered, strict=True))[::10]:
        said = "".join(segment.text for segment in segments if segment.trained)
        assert squeezed(decode(tokenizer, trained(one))) == squeezed(said)


@every_pair
def test_any_conversation_has_the_tokenizers_ids(pair):
    tokenizer, encoder = pair
    controls = control_ids(tokenizer, (*encoder.template.required, *encoder.template.stop))
    added = [token.content for token in tokenizer.added_tokens_decoder.values() if token.content not in controls]
    parts = st.sampled_from([*ORDINARY, *added[:60], *controls][:120]) | st.text(
        st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=8
    )
    content = st.lists(parts, min_size=1, max_size=5).map("".join)

    @settings(max_examples=30, deadline=None)
    @given(st.lists(st.tuples(content, content), min_size=1, max_size=2))
    def holds(rounds):
        messages = [message for question, answer in rounds for message in chat(question, answer)]
        try:
            segments = encoder.template.render(messages)
        except RowError:
            return
        (encoded,) = encoder.encode([segments])
        held = [token for message in messages for token in controls if token in message.content]
        assert encoded.escaped == bool(held)
        if not held and not straddles(tokenizer, encoder, messages):
            assert encoded.ids == own_ids(tokenizer, encoded.text)
        usual = [part.text for part in segments if part.control and part.text in controls]
        names = {number: token for token, number in controls.items()}
        assert [names[number] for number in encoded.ids if number in names] == usual

    holds()
