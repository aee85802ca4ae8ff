"""Tokenizers as the model makers mean them: the chat tokens at their slots, no remote code.

InternLM2's `tokenizer.model` calls its last slots `[UNUSED_TOKEN_141]` ... `[UNUSED_TOKEN_146]`; the chat models'
tokenizer_config renames them. A bare `tokenizer.model` gets the same names here, at the same ids: a new name added
by the library would get a new id past the vocabulary.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError
from trainer.models.xcomposer2_config import is_xcomposer

# id -> name, in a vocabulary of 92,544 (InternLM2 and 2.5 chat models' tokenizer_config.json)
INTERNLM2_SLOTS = {
    92538: "<|plugin|>",
    92539: "<|interpreter|>",
    92540: "<|action_end|>",
    92541: "<|action_start|>",
    92542: "<|im_end|>",
    92543: "<|im_start|>",
}
INTERNLM_SLOTS = {103027: "<eoh>", 103028: "<eoa>"}
SLOTS = {92544: INTERNLM2_SLOTS, 103168: INTERNLM_SLOTS}


def require_folder(path: str) -> None:
    """Raise ConfigError for a path that can only be a folder of this machine and is none."""
    if Path(path).expanduser().is_dir() or not (path.startswith((".", "/", "~")) or path.count("/") > 1):
        return
    raise ConfigError(
        f"model.path: got {path}, allowed: a folder that exists (working directory: {Path.cwd()}), or a hub name",
        "train the base first, or correct the path",
    )


def load_tokenizer(path: str) -> Any:
    """A fast tokenizer. Raises ConfigError when there is none, or when its chat tokens are not at their slots."""
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    require_folder(path)
    try:
        with _described(path) as folder:
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except Exception as error:  # transformers raises many kinds; each is about what the user named
        where = "a folder" if Path(path).is_dir() else "neither a folder here nor a name on the hub that can be reached"
        raise ConfigError(f"model.path: got {path} ({where}): no tokenizer: {str(error).splitlines()[0]}") from error
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise ConfigError(f"model.path: got {path} with a {type(tokenizer).__name__}, allowed: a fast tokenizer")
    slots = SLOTS.get(len(tokenizer), {})
    wrong = {
        number: name
        for number, name in slots.items()
        if number not in tokenizer.added_tokens_decoder or tokenizer.added_tokens_decoder[number].content != name
    }
    if wrong:
        tokenizer = _named(tokenizer, slots)
    for number, name in slots.items():
        if tokenizer.convert_tokens_to_ids(name) != number:
            raise ConfigError(
                f"model.path: got {path} with {name} at {tokenizer.convert_tokens_to_ids(name)}, allowed: {number}",
                "the tokenizer's files belong to another model, or its vocabulary was resized",
            )
    return tokenizer


@contextmanager
def _described(path: str) -> Iterator[str]:
    """`path`, or for a bare `tokenizer.model` a passing folder that says what the library must know of it; an
    XComposer2's files say it, but name classes that only the makers' code has."""
    model = Path(path).expanduser() / "tokenizer.model"
    if not model.is_file() or _is_described(model.parent):
        yield path
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / model.name).symlink_to(model.absolute())
        special = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
        own = model.with_name("tokenizer_config.json")
        told = json.loads(own.read_text(encoding="utf-8")) if own.is_file() else special
        told.pop("auto_map", None)
        config = {**told, "tokenizer_class": "InternLM2Tokenizer", "add_bos_token": True}
        (Path(folder) / "tokenizer_config.json").write_text(json.dumps(config))
        (Path(folder) / "config.json").write_text(json.dumps({"model_type": "internlm2"}))
        yield folder


def _is_described(folder: Path) -> bool:
    config = folder / "config.json"
    if config.is_file() and is_xcomposer(json.loads(config.read_text(encoding="utf-8"))):
        return False
    return config.exists() or (folder / "tokenizer_config.json").exists()


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
