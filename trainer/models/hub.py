"""Where a checkpoint lies: in a folder of this machine, or on the hub at a revision, of which only what is read is
downloaded. [I/O]"""

import json
import re
from pathlib import Path
from typing import Any

from trainer.errors import ConfigError
from trainer.families.xcomposer2_config import completed
from trainer.families.xcomposer2_shape import MODEL_TYPE as XCOMPOSER2
from trainer.families.xcomposer2_shape import is_xcomposer
from trainer.node.transient import is_passing, read_error

SMALL = ["*.json", "*.model", "*.jinja", "*.txt"]
# in this order: what the first finds is enough
WEIGHTS = (["model.safetensors", "model-*-of-*.safetensors"], ["pytorch_model.bin", "pytorch_model-*-of-*.bin"])

SEEING = ("llava", "internvl")  # model types of transformers that take images


def may_be_on_hub(path: str) -> bool:
    """Whether a path that is no folder here could be a name on the hub."""
    return not path.startswith((".", "/", "~")) and path.count("/") <= 1


def require_folder(path: str) -> None:
    """Raise ConfigError for a path that can only be a folder of this machine and is none."""
    if Path(path).expanduser().is_dir() or may_be_on_hub(path):
        return
    raise ConfigError(
        f"model.path: got {path}, allowed: a folder that exists (working directory: {Path.cwd()}), or a hub name",
        "train the base first, or correct the path",
    )


def small_folder(path: str, revision: str | None = None, code: bool = False) -> Path:
    """Where the config, the tokenizer and what else is small of a checkpoint lie; of a name on the hub they are
    downloaded, at its default branch or `revision`, with its Python files when `code` says so. Raises ConfigError for
    what is neither here nor there, UnreachableError when the hub does not answer."""
    folder = Path(path).expanduser()
    if not folder.is_dir():
        require_folder(path)
        return _downloaded(path, revision, [*SMALL, "*.py"] if code else SMALL)
    if revision is not None:
        raise ConfigError(
            f"model.revision: got {revision} with {path}, a folder of this machine, allowed: a name on the hub",
            "remove revision and trust_remote_code, or name the model as the hub does",
        )
    return folder


def config_folder(path: str, revision: str | None = None, code: bool = False) -> Path:
    """As small_folder, of a checkpoint that has a config.json. Raises ConfigError, UnreachableError."""
    folder = small_folder(path, revision, code)
    if not (folder / "config.json").is_file():
        raise ConfigError(f"model.path: {path} has no config.json, which says what model it is",
                          "name the folder of a whole checkpoint, or a model of the hub")  # fmt: skip
    return folder


def checkpoint_folder(path: str, revision: str | None = None, code: bool = False) -> Path:
    """As config_folder, with the weights. Raises ConfigError, UnreachableError."""
    folder = config_folder(path, revision, code)
    if Path(path).expanduser().is_dir():
        return folder
    for patterns in WEIGHTS:
        _downloaded(path, revision, patterns)
        if any(found for pattern in patterns for found in folder.glob(pattern)):
            break
    return folder


def _downloaded(name: str, revision: str | None, patterns: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=patterns))
    except Exception as error:  # many kinds; all of them mean that the name leads nowhere, now or for good
        at = f" at revision {revision}" if revision else ""
        where = "the hub does not answer" if is_passing(error) else "not on the hub"
        message = f"model.path: got {name}{at}: not a folder here, and {where}: {str(error).splitlines()[0]}"
        raise read_error(message, error) from error


def read_config(folder: Path) -> dict[str, Any]:
    """config.json, completed for an XComposer2. Raises ConfigError, UnreachableError."""
    raw = read_raw_config(folder)
    return completed(raw, folder) if is_xcomposer(raw) else raw


def read_model_type(path: str, revision: str | None = None) -> str:
    """What config.json calls the model of a folder, or of a name on the hub; "" in a folder with a tokenizer alone.
    Raises ConfigError, UnreachableError."""
    folder = small_folder(path, revision)
    if not (folder / "config.json").is_file():
        return ""
    raw = read_raw_config(folder)
    return XCOMPOSER2 if is_xcomposer(raw) else str(raw.get("model_type", ""))


def read_raw_config(folder: Path) -> dict[str, Any]:
    """config.json as it is. Raises ConfigError, UnreachableError."""
    return read_fields(folder / "config.json")


def read_fields(path: Path) -> dict[str, Any]:
    """The fields of one of a checkpoint's JSON files. Raises ConfigError, UnreachableError."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise read_error(f"{path}: cannot be read: {error}", error, "download the checkpoint again") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: got a {type(raw).__name__}, allowed: named fields, as in {{...}}",
                          "download the checkpoint again")  # fmt: skip
    return raw


def require_class(path: str, raw: dict[str, Any], trust_remote_code: bool) -> None:
    """Raise ConfigError for a model that transformers has no class for, unless its own code may be run; and for code
    of another repository, which model.revision does not pin."""
    from transformers import CONFIG_MAPPING

    kind, places = raw.get("model_type"), [str(place) for place in (raw.get("auto_map") or {}).values()]
    if not trust_remote_code and kind not in CONFIG_MAPPING:
        ways = "; its own code runs with model.trust_remote_code: true with a revision of 40 digits" if places else ""
        raise ConfigError(
            f"model.path: got {path} of model_type {kind!r}, allowed: one that transformers knows{ways}",
            "correct model_type in config.json, or read the model's code and pin its commit in model.revision",
        )
    others = [found[1] for found in (re.match(r"(.+)--", place) for place in places) if found]
    if trust_remote_code and others:
        raise ConfigError(
            f"model.path: got {path}, whose code is that of {others[0]}, allowed: code of its own repository, which "
            "model.revision pins",
            "copy the model and its code into one repository",
        )


def auto_class(raw: dict[str, Any]) -> Any:
    """transformers' Auto class for the model of a config.json."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if raw.get("model_type") in SEEING else AutoModelForCausalLM
