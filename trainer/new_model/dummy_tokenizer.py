"""Tokenizers for models that are made from nothing: a real one that is given, or a small one, which has pieces without
a text up to the size of the model's vocabulary. [I/O]"""
# ruff: noqa: RUF001 - Chinese texts have full-width commas

import json
import shutil
import tempfile
from pathlib import Path

from trainer.data.templates import TEMPLATES
from trainer.errors import ConfigError
from trainer.families.card import Card
from trainer.new_model.create import describe_pieces, train_pieces
from trainer.new_model.sizes import template_of

TRAINED = 380  # pieces: 256 bytes, three special ones, the letters of TEXTS and their commonest pairs
TEXTS = """A model is made of layers, and each layer reads what the one before has written.
The first token of an answer comes after the last token of the question.
When the loss falls, the model has learned something of what it was shown; when it does not, look at the data.
Training reads rows, packs them into sequences, and writes a checkpoint from time to time.
How many bytes does a weight take? Four in float32, two in bf16, and a half in four bits.
def add(first, second): return first + second
for step in range(1000): print(step, loss)
模型由许多层组成，每一层读取前一层写下的内容。
训练时模型读取数据，损失下降，说明它学到了东西。
上海有许多景点，例如外滩、豫园和东方明珠。
""".splitlines()
# of a checkpoint's folder, what a tokenizer is made of
FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json",
         "vocab.json", "merges.txt")  # fmt: skip


def write_tokenizer(card: Card, size: int, folder: Path, given: Path | None) -> None:
    """Write a tokenizer of at most `size` tokens into `folder`. Raises ConfigError when `given` has none."""
    if given is not None and given.is_dir():
        found = [given / name for name in FILES if (given / name).is_file()]
        if not found:
            raise ConfigError(f"--tokenizer: got {given}, allowed: a folder with one of {', '.join(FILES[:2])}")
        for path in found:
            shutil.copyfile(path, folder / path.name)
        return
    if given is not None and not given.is_file():
        raise ConfigError(f"--tokenizer: got {given}, which is not there, allowed: a tokenizer.model, or a folder")
    tokens = chat_tokens(card, size)
    own = card.new is not None and card.new.has_pieces
    with tempfile.TemporaryDirectory() as passing:
        made = folder if own else Path(passing)
        model = padded(train_pieces(TEXTS, TRAINED, []), size, tokens) if given is None else given.read_bytes()
        (made / "tokenizer.model").write_bytes(model)
        # the chat tokens of a real file have their slots, but not yet their names
        describe_pieces(made, card.name if own else "internlm2", [] if given else list(tokens.values()))
        if not own:
            _save_as_json(made, folder)


def chat_tokens(card: Card, size: int) -> dict[int, str]:
    """Id -> chat token, in a vocabulary of this size."""
    if card.slots and max(card.slots) < size:
        return dict(card.slots)
    template = TEMPLATES[template_of(card)]
    said = [name for name in (*template.required, *template.stop) if name not in ("<s>", "</s>")]
    names = list(dict.fromkeys((card.new and card.new.tokens) or said))
    return dict(zip(range(size - len(names), size), names, strict=True))


def padded(model: bytes, size: int, tokens: dict[int, str]) -> bytes:
    """A SentencePiece model with pieces up to `size`, the chat tokens among them."""
    from sentencepiece import sentencepiece_model_pb2 as protocol

    kinds = protocol.ModelProto.SentencePiece
    found = protocol.ModelProto.FromString(model)
    for number in range(len(found.pieces), size):
        kind = kinds.USER_DEFINED if number in tokens else kinds.UNUSED
        found.pieces.add(piece=tokens.get(number, f"[UNUSED_TOKEN_{number}]"), score=-float(number), type=kind)
    found.trainer_spec.vocab_size = size
    return bytes(found.SerializeToString())


def _save_as_json(made: Path, folder: Path) -> None:
    """Write a tokenizer as the tokenizer.json that every family's code can read."""
    from transformers import AutoTokenizer

    (made / "config.json").write_text(json.dumps({"model_type": "internlm2"}), encoding="utf-8")
    AutoTokenizer.from_pretrained(made, trust_remote_code=False).save_pretrained(folder)
