"""The example jobs of docs/data.md: each goes through `launch data` and through training."""

import json

import pytest
import torch
import yaml

from tests.trainer import warm
from tests.trainer.conftest import REPO, load_tokenizer
from trainer.cli import main
from trainer.config.job import TrainConfig
from trainer.data.encode import Encoder
from trainer.data.message import Message
from trainer.data.templates import TEMPLATES
from trainer.models.load import load_model

EXAMPLES = REPO / "examples" / "data"
NAMES = ["guanaco", "messages", "sharegpt_tools", "wanjuan_text", "mix"]
# what the pipeline must find: rows read, conversations, formats
FOUND = {
    "messages": (60, 60, {"messages"}),
    "sharegpt_tools": (12, 12, {"sharegpt"}),
    "wanjuan_text": (7, 5, {"wanjuan"}),
}


def train_section(name, base, output):
    """Of an example, for the tiny base; relative paths are from the example's folder."""
    train = yaml.safe_load((EXAMPLES / f"{name}.yaml").read_text())["train"]
    train["model"] |= {"path": str(base), "quantization": "none", "dtype": "fp32"}
    train["settings"] = {"output_dir": str(output)}
    train["optimizer"] |= {"max_steps": 2, "deepspeed": None}
    for source in train["data"]["sources"]:
        source["path"] = str((EXAMPLES / source["path"]).resolve())
    return train


def test_every_example_is_looked_at():
    assert {path.stem for path in EXAMPLES.glob("*.yaml")} == set(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_an_example_is_shown_and_trained(name, tiny_base, tmp_path, capsys):
    train = train_section(name, tiny_base, tmp_path / "out")
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(train))
    assert main(["data", "--config", str(tmp_path / "train.yaml"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    read, kept = shown["stages"][0]["rows_in"], shown["lengths"]["samples"]
    if name in FOUND:
        conversations = shown["stages"][1]["rows_out"]
        assert (read, conversations, {source["format"] for source in shown["sources"]}) == FOUND[name]
        assert kept >= conversations  # a document may be several
    run = warm.start(tmp_path, train)
    assert run.codes() == [0], run.text
    assert f"data: {read} rows read, {kept} samples kept" in run.text
    assert ("validation at step 2/2  loss " in run.text) == ("validation" in train["data"])


def test_a_set_smaller_than_one_row_is_a_smaller_run(tiny_base, tmp_path):
    """xtuner#944, #336: a small set that is packed. One short row, and a step that would take sixteen."""
    (tmp_path / "rows.jsonl").write_text('{"instruction": "Hi", "output": "Yes."}\n')
    train = train_section("messages", tiny_base, tmp_path / "out")
    train["data"] = {"sources": [{"path": str(tmp_path / "rows.jsonl")}], "max_length": 512}
    train["optimizer"] = {"batch_size": 4, "accumulation": 4, "epochs": 3.0, "deepspeed": None}
    run = warm.start(tmp_path, train)
    assert run.codes() == [0], run.text
    assert "packed into 1 rows" in run.text and "step 1/1 " in run.text


def test_the_validation_loss_is_that_of_the_samples_whatever_the_ranks(tiny_base, tmp_path):
    """Five rows in batches of two on two ranks, so that the last batch has work for one of them only."""
    losses = []
    for ranks in (1, 2):
        train = train_section("messages", tiny_base, tmp_path / f"out-{ranks}")
        train["data"] |= {"validation": [{"path": str(tmp_path / "rows.jsonl")}], "pack": False}
        (tmp_path / "rows.jsonl").write_text("".join((REPO / "examples/quickstart/facts.jsonl").open().readlines()[:5]))
        train["optimizer"] |= {"batch_size": 2, "lr": 1.0e-9, "max_steps": 1}
        run = warm.start(tmp_path / f"run-{ranks}", train, ranks)
        assert run.codes() == [0] * ranks, run.text
        losses += [row["validation_loss"] for row in rows_of(tmp_path / f"out-{ranks}/metrics.jsonl")
                   if "validation_loss" in row]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    assert losses[0] == pytest.approx(loss_by_hand(tiny_base, tmp_path / "rows.jsonl"), abs=1e-3)


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def loss_by_hand(base, path):
    """Negative log-likelihood of each answer and its end token, one conversation at a time."""
    config = TrainConfig.model_validate({
        "model": {"path": str(base), "quantization": "none", "lora": {"r": 4}, "dtype": "fp32"},
        "data": {"sources": [{"path": str(path)}]}})  # fmt: skip
    model, tokenizer = load_model(config, torch.device("cpu")), load_tokenizer(str(base))
    encoder = Encoder(tokenizer, TEMPLATES["internlm2"])
    total = count = 0.0
    for row in rows_of(path):
        chat = [Message(message["role"], message["content"]) for message in row["messages"]]
        (encoded,) = encoder.encode([encoder.template.render(chat)])
        with torch.no_grad():
            logits = model(torch.tensor([encoded.ids])).logits[0, :-1].log_softmax(-1)
        for place, label in enumerate(encoded.labels[1:]):
            if label >= 0:
                total, count = total - float(logits[place, label]), count + 1
    return total / count
