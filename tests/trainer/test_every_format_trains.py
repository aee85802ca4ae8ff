"""Every format and every template goes through `launch data` and through training."""

import json
import shutil

import pytest

from tests.trainer import warm
from tests.trainer.conftest import QUICKSTART, load_tokenizer
from tests.trainer.test_formats import GOLDEN
from trainer.cli import main
from trainer.config.job import FORMATS, Shape, TemplateName
from trainer.new_model.create import new_model, save_internlm2


@pytest.fixture(scope="module")
def base(tmp_path_factory, all_tokens_folder):
    """A tiny model whose tokenizer has the special tokens of all templates."""
    folder = shutil.copytree(all_tokens_folder, tmp_path_factory.mktemp("base") / "model")
    shape = Shape(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2,
                  vocab_size=len(load_tokenizer(str(folder))), max_positions=1024)  # fmt: skip
    model = new_model(shape, 0)
    save_internlm2(model.state_dict(), model.config, folder, [2])
    return folder


def train_section(base, folder, sources, **model):
    return {
        "settings": {"output_dir": str(folder / "out")},
        "model": {"path": str(base), "quantization": "none", "dtype": "fp32", "lora": {"r": 4},
                  "gradient_checkpointing": False, **model},
        "data": {"sources": sources, "max_length": 1024},
        "optimizer": {"max_steps": 1, "batch_size": 1, "accumulation": 1, "deepspeed": None},
        "runtime": {"sample_prompts": ["Who?"], "sampling": {"temperature": 0, "max_new_tokens": 2}},
    }  # fmt: skip


def shown(train, folder, capsys):
    """What `launch data --json` says of it."""
    (folder / "train.yaml").write_text(json.dumps(train))
    assert main(["data", "--config", str(folder / "train.yaml"), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def trained(train, folder):
    run = warm.start(folder, train)
    assert run.codes() == [0], run.text
    return run.text


def test_every_format_is_shown_and_trained_on(base, tmp_path, capsys):
    """One job with a source of each."""
    sources = []
    for name in FORMATS:
        row = json.loads((GOLDEN / f"{name}.json").read_text(encoding="utf-8"))["row"]
        (tmp_path / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
        sources.append({"path": str(tmp_path / f"{name}.jsonl"), "format": name})
    train = train_section(base, tmp_path, sources)
    found = shown(train, tmp_path, capsys)["sources"]
    assert [source["format"] for source in found] == list(FORMATS)
    assert all(sum(source["files"].values()) >= 1 for source in found)
    assert f"data: {len(FORMATS)} rows read" in trained(train, tmp_path)


@pytest.mark.parametrize("name", TemplateName.__args__)
def test_every_template_is_shown_and_trained_on(base, tmp_path, capsys, name):
    (tmp_path / "rows.jsonl").write_text("".join((QUICKSTART / "facts.jsonl").open().readlines()[:6]))
    train = train_section(base, tmp_path, [{"path": str(tmp_path / "rows.jsonl")}], chat_template=name)
    found = shown(train, tmp_path, capsys)
    assert found["lengths"]["samples"] == 6
    own = {"chatml": "equal", "qwen": "equal", "tokenizer": "not compared"}.get(name, "different")
    assert found["template"]["result"] == own
    assert "step 1/1 " in trained(train, tmp_path)
