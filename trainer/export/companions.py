"""What stands beside the weights of a checkpoint: its config, when answers end, its tokenizer and its chat template, so
that servers do what training did. [I/O]"""

import json
import shutil
from pathlib import Path
from typing import Any

from trainer.chat.answer import stop_ids
from trainer.data.templates import Template, find_template
from trainer.errors import ConfigError
from trainer.models.tokenizer import load_tokenizer

SENTENCEPIECE = "tokenizer.model"
UNSAID = ("auto_map", "backend", "is_local", "local_files_only", "name_or_path")  # of where and how it was loaded
# Tokenised again after writing: blanks, line ends, digits, other scripts, text around tokens
PROBES = ("Hello world", " two  blanks", "line\nend\n", "3.14 and 100,000", "你好,世界", "é ü ß", "a<s>b", "\t{}<|x|>")


def write_companions(folder: Path, config: dict[str, Any], base: Path, chat_template: str | None) -> None:
    """Write config.json, generation_config.json, the tokenizer's files and chat_template.jinja. `base`: the folder of
    the checkpoint that was merged into. Raises ConfigError when the written tokenizer gives other ids."""
    tokenizer = load_tokenizer(str(base))
    template = find_template(chat_template, tokenizer)
    _write(folder / "config.json", config)
    _write(folder / "generation_config.json", generation_config(base, config, tokenizer, template))
    write_tokenizer(folder, tokenizer, template.jinja())
    if (base / SENTENCEPIECE).is_file():
        shutil.copyfile(base / SENTENCEPIECE, folder / SENTENCEPIECE)
    check_tokenizer(folder, tokenizer, template)


def generation_config(base: Path, config: dict[str, Any], tokenizer: Any, template: Template) -> dict[str, Any]:
    """The base's, with every token that ends an answer: servers stop at these."""
    path = base / "generation_config.json"
    try:
        kept = dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except ValueError as error:
        raise ConfigError(f"{path}: no JSON: {error}") from error
    pad = tokenizer.pad_token_id
    ids = {"bos_token_id": tokenizer.bos_token_id, "pad_token_id": config.get("pad_token_id") if pad is None else pad}
    kept.pop("transformers_version", None)
    return {**kept, **ids, "eos_token_id": stop_ids(tokenizer, template.stop)}


def write_tokenizer(folder: Path, tokenizer: Any, jinja: str) -> None:
    """Its files, as a class that takes ids and pieces from tokenizer.json as they are: LlamaTokenizer would add its own
    blank, and give the chat tokens new ids. Older readers look for the template in tokenizer_config.json."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text(encoding="utf-8"))
    config |= {"tokenizer_class": "PreTrainedTokenizerFast", "chat_template": jinja}
    if isinstance(config.get("extra_special_tokens"), list):  # a name that transformers 4 has for something else
        config["additional_special_tokens"] = config.pop("extra_special_tokens")
    _write(path, {key: value for key, value in config.items() if key not in UNSAID})
    (folder / "chat_template.jinja").write_text(jinja, encoding="utf-8")


def check_tokenizer(folder: Path, tokenizer: Any, template: Template) -> None:
    """Raise ConfigError unless transformers reads back the same vocabulary, ids and chat template."""
    from transformers import AutoTokenizer

    again = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    differ = [probe for probe in PROBES if again(probe).input_ids != tokenizer(probe).input_ids]
    if again.get_vocab() != tokenizer.get_vocab() or differ or again.all_special_ids != tokenizer.all_special_ids:
        what = f"other ids for {differ[0]!r}" if differ else "another vocabulary"
        raise ConfigError(f"{folder}: the tokenizer written there has {what}: this is a defect of launch")
    if again.chat_template != template.jinja():
        raise ConfigError(f"{folder}: the chat template written there is another one: this is a defect of launch")


def _write(path: Path, values: dict[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
