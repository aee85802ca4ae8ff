"""Tokenizers for the trainer's tests: a small one made here, and InternLM's real ones where ../shared/data is."""

import functools
import json
import shutil
import tarfile
from pathlib import Path

import pytest
import yaml
from tokenizers import AddedToken
from transformers import AutoTokenizer

from tests.trainer import warm
from tests.trainer.talker import make_talker
from trainer.config.job import TrainConfig
from trainer.data.templates import TEMPLATES
from trainer.models.tokenizer import load_tokenizer as read_tokenizer
from trainer.new_model.create import train_tokenizer

REPO = Path(__file__).parents[2]
SHARED = REPO.parent / "shared" / "data"
QUICKSTART = REPO / "examples" / "quickstart"


load_tokenizer = functools.lru_cache(read_tokenizer)  # a real one takes seconds


@pytest.fixture(scope="session")
def small_tokenizer_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    lines = [json.loads(line)["text"] for line in (QUICKSTART / "base.jsonl").read_text().splitlines()]
    train_tokenizer(lines, 600, folder)
    return folder


@pytest.fixture(scope="session")
def small_tokenizer(small_tokenizer_folder):
    return load_tokenizer(str(small_tokenizer_folder))


@pytest.fixture(scope="session")
def all_tokens_folder(tmp_path_factory, small_tokenizer_folder):
    """The small tokenizer with the special tokens of all templates, and ChatML as its own."""
    folder = tmp_path_factory.mktemp("all-tokens")
    tokenizer = AutoTokenizer.from_pretrained(small_tokenizer_folder)
    wanted = {token for template in TEMPLATES.values() for token in template.required} - set(tokenizer.get_vocab())
    tokens = [AddedToken(token, special=True, normalized=False) for token in sorted(wanted)]
    tokenizer.add_tokens(tokens, special_tokens=True)
    tokenizer.chat_template = TEMPLATES["chatml"].jinja()
    tokenizer.save_pretrained(folder)
    return folder


def real_folder(family: str, target: Path) -> Path:
    """A checkpoint folder with the real tokenizer.model and a bare config, as the hub would give it."""
    model = SHARED / "tokenizers" / family / "tokenizer.model"
    if not model.exists():
        pytest.skip(f"no real {family} tokenizer: {model} is absent")
    target.mkdir(parents=True, exist_ok=True)
    shutil.copy(model, target)
    (target / "config.json").write_text(json.dumps({"model_type": family}))
    kind = {"internlm": "InternLMTokenizer", "internlm2": "InternLM2Tokenizer"}[family]
    (target / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": kind,
                "bos_token": "<s>",
                "eos_token": "</s>",
                "unk_token": "<unk>",
                "pad_token": "</s>",
                "add_bos_token": True,
            }
        )
    )
    return target


@pytest.fixture(scope="session")
def real_internlm2(tmp_path_factory):
    return real_folder("internlm2", tmp_path_factory.mktemp("real") / "internlm2")


@pytest.fixture(scope="session")
def real_internlm(tmp_path_factory):
    return real_folder("internlm", tmp_path_factory.mktemp("real") / "internlm")


@pytest.fixture(scope="session")
def maker_folder(tmp_path_factory):
    """The folder of a maker's tokenizer by its name: qwen3, gemma3, llama3_1, ... and InternLM's two. Archives are
    unpacked once."""

    @functools.cache
    def folder(name):
        if name.startswith("internlm"):
            return real_folder(name, tmp_path_factory.mktemp("real") / name)
        archive = SHARED / "tokenizers" / f"{name}.tar.xz"
        if not archive.exists():
            pytest.skip(f"no real {name} tokenizer: {archive} is absent")
        with tarfile.open(archive) as file:
            file.extractall(target := tmp_path_factory.mktemp("maker"), filter="data")
        return target / name

    return folder


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory):
    """A trained model of a few thousand parameters, as a checkpoint folder."""
    folder = tmp_path_factory.mktemp("base")
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_layers": 2, "num_heads": 4, "num_kv_heads": 2,
             "vocab_size": 400, "max_positions": 512}  # fmt: skip
    run = warm.start(folder, {
        "settings": {"seed": 7, "output_dir": str(folder / "out")},
        "model": {"dtype": "fp32", "gradient_checkpointing": False, "init": "internlm2", "quantization": "none",
                  "lora": None, "shape": shape},
        "data": {"sources": [{"path": str(QUICKSTART / "facts.jsonl")}], "max_length": 64, "pack": False},
        "optimizer": {"lr": 1.0e-2, "max_steps": 1, "batch_size": 8, "accumulation": 2},
        "runtime": {"sample_prompts": []},
    })  # fmt: skip
    assert run.codes() == [0], run.text
    return folder / "out/model"


@pytest.fixture
def make_config(tmp_path):
    """A TrainConfig over rows written to a file; keyword arguments override whole fields of `data`."""

    base = tmp_path / "text-model"
    base.mkdir()
    (base / "config.json").write_text('{"model_type": "llama"}')

    def make(rows, *, path=base, template="internlm2", **data):
        file = tmp_path / "rows.jsonl"
        file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
        values = {
            "model": {"path": str(path), "chat_template": template},
            "data": {"sources": [{"path": str(file)}], **data},
        }
        return TrainConfig.model_validate(yaml.safe_load(yaml.safe_dump(values)))

    return make


@pytest.fixture(scope="session")
def talker(tmp_path_factory, small_tokenizer, small_tokenizer_folder):
    """A checkpoint that knows the conversations of tests/trainer/talker.py by heart."""
    return make_talker(tmp_path_factory.mktemp("talker") / "base", small_tokenizer, small_tokenizer_folder)
