"""What is trained, in tokens, for every template and any conversation."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.trainer.conftest import load_tokenizer
from trainer.data.encode import IGNORED, Encoder
from trainer.data.message import Message
from trainer.data.pieces import decode
from trainer.data.templates import TEMPLATES

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
SPELLED = st.sampled_from(
    ["<|im_end|>", "</s>", "a <s> b", "[INST]", "<eoa>", "<|eot_id|>x", " blank", "\nline", "中文🧑‍🚀"]
)
ROUNDS = st.lists(st.tuples(TEXT | SPELLED, TEXT | SPELLED, st.booleans()), min_size=1, max_size=3)


def blank(text):
    """SentencePiece's decoder takes the marks in DeepSeek's tokens for blanks."""
    return text.replace("▁", " ")


def shown(tokenizer, ids):
    return blank(decode(tokenizer, ids))


@pytest.fixture(scope="module")
def tokenizer(all_tokens_folder):
    return load_tokenizer(str(all_tokens_folder))


@pytest.mark.parametrize("name", TEMPLATES)
def test_trained_tokens_are_the_answers_and_their_end_tokens_and_nothing_else(name, tokenizer):
    template = TEMPLATES[name]
    encoder = Encoder(tokenizer, template)
    tokens = tokenizer.added_tokens_decoder
    special = re.compile("|".join(re.escape(str(token)) for token in tokens.values()))

    def marked(token):
        """The text of a special token; of any other, something that spells none."""
        return str(tokens[token]) if token in tokens else "."

    @settings(max_examples=25, deadline=None)
    @given(ROUNDS)
    def holds(rounds):
        messages = []
        for question, answer, loss in rounds:
            messages += [Message("user", question), Message("assistant", answer, loss)]
        segments = template.render(messages)
        (encoded,) = encoder.encode([segments])
        assert len(encoded.labels) == len(encoded.ids)
        trained = [label for label in encoded.labels if label != IGNORED]
        assert shown(tokenizer, trained) == blank("".join(segment.text for segment in segments if segment.trained))
        assert shown(tokenizer, encoded.ids) == blank(encoded.text)
        # [INST] and <|user|> are ordinary text of some templates, and tokens of this tokenizer
        controls = [found for segment in segments if not segment.content for found in special.findall(segment.text)]
        assert special.findall("".join(map(marked, encoded.ids))) == controls

    holds()


def test_the_tokenizer_of_this_test_has_every_token(tokenizer):
    known = set(tokenizer.get_vocab())
    assert all(set(template.required) <= known for template in TEMPLATES.values())
