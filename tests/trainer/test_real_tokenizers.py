"""InternLM's and InternLM2's real tokenizers against SentencePiece, and vocabularies that do not fit their model."""

import json
import random
import shutil

import pytest
import sentencepiece

from tests.trainer.conftest import SHARED, load_tokenizer
from trainer.data.encode import Encoder
from trainer.data.message import Message
from trainer.data.templates import TEMPLATES
from trainer.errors import ConfigError
from trainer.models.tokenizer import load_tokenizer as read_tokenizer

CODE = [
    "def f(x):\n\treturn x**2  # 平方\n",
    "for(;;){}\r\n",
    "SELECT * FROM t WHERE a<>'b';",
    "#include <stdio.h>\n\n\n",
]
# each on its own and mixed: blanks of all kinds, what looks like a piece, marks, rare planes
ODD = [
    " ", "  ", "\n", "\n\n", "\t", "\r", "\u3000", "\u00a0", "\u200b", "\u200d", "\ufeff", "▁", "é", "\u0301", "ß",
    "😀", "🧑‍🚀", "中", "ｱ", "\x7f", "\u2028", "a<0x41>", "\ud7ff", "\U0010ffff", "ﷺ", "a", "Z", "0", "़", "한",
]  # fmt: skip


def texts():
    """Real rows of every kind, then random mixtures, without NUL: newer SentencePiece versions do not use its piece."""
    found = [*CODE, *ODD]
    for name in ("alpaca_zh_demo.json", "alpaca_en_demo.json", "glaive_toolcall_en_demo.json", "identity.json"):
        for row in json.loads((SHARED / "sft" / name).read_text(encoding="utf-8"))[:40]:
            found += [value for value in row.values() if isinstance(value, str)]
            found += [turn["value"] for turn in row.get("conversations", [])]
    chosen = random.Random(0)
    found += ["".join(chosen.choices(ODD, k=chosen.randint(1, 12))) for _ in range(600)]
    return found + [f"{lead}{text}{lead}" for text in found[:200] for lead in (" ", "\n", "   ")]


@pytest.mark.parametrize("family", ["internlm", "internlm2"])
def test_ids_are_sentencepieces_on_real_and_odd_texts(family, request):
    folder = request.getfixturevalue(f"real_{family}")
    tokenizer = load_tokenizer(str(folder))
    reference = sentencepiece.SentencePieceProcessor(str(folder / "tokenizer.model"))
    every = texts()
    found = tokenizer(every, add_special_tokens=False).input_ids
    wrong = [(text, ids) for text, ids in zip(every, found, strict=True) if ids != reference.encode(text)]
    assert not wrong, wrong[:3]
    assert len(every) > 1500


@pytest.mark.parametrize("family", ["internlm", "internlm2"])
def test_pain_4_the_beginning_of_a_text_is_written_once(family, request):
    """Pain 4 (trl#1400): a template that writes the beginning, and a tokenizer that adds one, give two."""
    tokenizer = load_tokenizer(str(request.getfixturevalue(f"real_{family}")))
    encoder = Encoder(tokenizer, TEMPLATES[family])
    ids = encoder.encode([encoder.template.render([Message("user", "Hi"), Message("assistant", "Ho")])])[0].ids
    assert [int(one) for one in ids].count(tokenizer.bos_token_id) == 1
    assert list(encoder.prompt_ids(encoder.template.prompt([Message("user", "Hi")]))).count(tokenizer.bos_token_id) == 1


@pytest.mark.parametrize("family", ["internlm", "internlm2"])
def test_pain_1_an_answer_ends_with_a_trained_token_although_padding_is_the_end_token(family, request):
    """Pain 1 (transformers#23530): the padding token is the end token, and a mask by its id hides every end."""
    tokenizer = load_tokenizer(str(request.getfixturevalue(f"real_{family}")))
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    encoder = Encoder(tokenizer, TEMPLATES[family])
    sample = encoder.encode([encoder.template.render([Message("user", "Hi"), Message("assistant", "Ho")])])[0]
    end = tokenizer.convert_tokens_to_ids(TEMPLATES[family].stop[0])
    assert [int(label) for label in sample.labels].count(end) == 1


def resized(folder, target, **config):
    shutil.copytree(folder, target)
    raw = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**raw, **config}))
    return target


def test_pain_12_tokens_past_the_models_embeddings_are_refused(small_tokenizer_folder, tmp_path):
    """Pain 12 (unsloth#1971): tokens that were added, and a vocabulary that is resized without a word."""
    folder = resized(small_tokenizer_folder, tmp_path / "base", vocab_size=600)
    assert len(read_tokenizer(str(folder))) == 600
    tokenizer = json.loads((folder / "tokenizer_config.json").read_text())
    tokenizer["additional_special_tokens"].append("<|mine|>")
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match=r"tokenizer of 601 tokens, the last is '<\|mine\|>', and a model of 600 "):
        read_tokenizer(str(folder))
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "vocab_size": 608}))
    assert read_tokenizer(str(folder)).convert_tokens_to_ids("<|mine|>") == 600, "a model with room for it takes it"


def test_another_models_tokenizer_in_an_internlm2_folder_is_refused(small_tokenizer_folder, tmp_path):
    folder = resized(small_tokenizer_folder, tmp_path / "base", vocab_size=92544)
    with pytest.raises(ConfigError, match=r"with None at 92538, allowed: <\|plugin\|>"):
        read_tokenizer(str(folder))
