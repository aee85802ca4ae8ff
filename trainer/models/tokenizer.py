"""Tokenizers as the model makers mean them: the chat tokens at their slots, no remote code.

InternLM2's `tokenizer.model` calls its last slots `[UNUSED_TOKEN_141]` ... `[UNUSED_TOKEN_146]`; the chat models'
tokenizer_config renames them. A bare `tokenizer.model` gets the same names here, at the same ids: a new name added
by the library would get a new id past the vocabulary.
"""

import json
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError
from trainer.families.registry import CARDS
from trainer.families.xcomposer2_shape import is_xcomposer
from trainer.models.hub import read_fields, read_raw_config, small_folder
from trainer.node.transient import read_error

# size of a vocabulary -> id -> chat token
SLOTS = {card.slots_vocab: dict(card.slots) for card in CARDS.values() if card.slots}
UNUSED = re.compile(r"\[UNUSED_TOKEN_\d+\]|<TOKENS_UNUSED_\d+>")  # pieces without a text, in either model


def load_tokenizer(path: str, revision: str | None = None) -> Any:
    """A fast tokenizer. Raises ConfigError when there is none, when its chat tokens are not at their slots, or when it
    has more tokens than the model has embeddings (config.json); UnreachableError when the hub does not answer."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = small_folder(path, revision)
    raw = read_raw_config(folder) if (folder / "config.json").is_file() else {}  # there may be a tokenizer alone
    try:
        with _described(folder, raw) as described:
            tokenizer = AutoTokenizer.from_pretrained(described, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds; each is about what the user named
        raise read_error(f"model.path: got {path}: no tokenizer: {str(error).splitlines()[0]}", error) from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(f"model.path: got {path} with a {type(tokenizer).__name__}, allowed: a fast tokenizer")
    _require_room(tokenizer, path, raw)
    of_internlm = str(raw.get("model_type")).startswith("internlm") and raw.get("vocab_size") in SLOTS
    return _with_slots(tokenizer, path, SLOTS.get(raw["vocab_size"] if of_internlm else len(tokenizer), {}))


def _require_room(tokenizer: Any, path: str, raw: dict[str, Any]) -> None:
    rows = raw.get("vocab_size") or (raw.get("text_config") or {}).get("vocab_size")
    last = max(tokenizer.get_vocab().items(), key=lambda item: item[1])
    if rows is not None and last[1] >= rows:
        raise ConfigError(
            f"model.path: got {path} with a tokenizer of {last[1] + 1} tokens, the last is {last[0]!r}, and a model of "
            f"{rows} embeddings (config.json), allowed: a tokenizer that is not larger than the model",
            "the tokenizer's files belong to another model, or tokens were added to it; no vocabulary is resized here",
        )


def _with_slots(tokenizer: Any, path: str, slots: dict[int, str]) -> Any:
    """The tokenizer with the chat tokens at their slots, which may have no name yet. Raises ConfigError."""
    for number, name in slots.items():
        held = tokenizer.convert_ids_to_tokens(number)
        if held != name and not UNUSED.fullmatch(str(held)):
            raise ConfigError(
                f"model.path: got {path} with {held!r} at {number}, allowed: {name}",
                "the tokenizer's files belong to another model, or its vocabulary was resized",
            )
    known = tokenizer.added_tokens_decoder
    if any(number not in known or known[number].content != name for number, name in slots.items()):
        tokenizer = _named(tokenizer, slots)
    for number, name in slots.items():
        if tokenizer.convert_tokens_to_ids(name) != number:
            raise ConfigError(
                f"model.path: got {path} with {name} at {tokenizer.convert_tokens_to_ids(name)}, allowed: {number}",
                "the tokenizer's files belong to another model, or its vocabulary was resized",
            )
    return tokenizer


@contextmanager
def _described(folder: Path, raw: dict[str, Any]) -> Iterator[Path]:
    """`folder`, or for a bare `tokenizer.model` a passing folder that says what the library must know of it; an
    XComposer2's files say it, but name classes that only the makers' code has. `raw`: its config.json."""
    model = folder / "tokenizer.model"
    says = bool(raw) or (folder / "tokenizer_config.json").exists()
    if not model.is_file() or (says and not is_xcomposer(raw)):
        yield folder
        return
    with tempfile.TemporaryDirectory() as passing:
        (Path(passing) / model.name).symlink_to(model.absolute())
        special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
        own = folder / "tokenizer_config.json"
        told = read_fields(own) if own.is_file() else special
        told.pop("auto_map", None)
        config = {**told, "tokenizer_class": "InternLM2Tokenizer", "add_bos_token": True}
        (Path(passing) / "tokenizer_config.json").write_text(json.dumps(config))
        (Path(passing) / "config.json").write_text(json.dumps({"model_type": "internlm2"}))
        yield Path(passing)


def _named(tokenizer: Any, slots: dict[int, str]) -> Any:
    """The same tokenizer with the special tokens `slots` at their ids."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = state["model"]["vocab"]
    old_names = {number: piece for piece, number in vocabulary.items() if number in slots}
    for number, name in slots.items():
        vocabulary.pop(old_names.get(number, name), None)
        vocabulary[name] = number
    gone = set(old_names.values()) - set(slots.values())
    state["model"]["merges"] = [pair for pair in state["model"]["merges"] if "".join(pair) not in gone]
    state["added_tokens"] = [token for token in state["added_tokens"] if token["id"] not in slots]
    state["added_tokens"] += [_added(number, name) for number, name in slots.items()]
    state["added_tokens"].sort(key=lambda token: token["id"])
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(state)),
        bos_token=tokenizer.bos_token,
        eos_token=tokenizer.eos_token,
        unk_token=tokenizer.unk_token,
        pad_token=tokenizer.pad_token or tokenizer.eos_token,
        extra_special_tokens=list(slots.values()),
        chat_template=tokenizer.chat_template,
    )


def _added(number: int, name: str) -> dict[str, Any]:
    return {
        "id": number,
        "content": name,
        "special": True,
        "normalized": False,
        "lstrip": False,
        "rstrip": False,
        "single_word": False,
    }
