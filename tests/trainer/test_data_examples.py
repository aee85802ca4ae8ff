"""The example jobs of docs/data.md: each goes through `launch data` and through training."""

import json

import pytest
import yaml

from tests.trainer import warm
from tests.trainer.conftest import REPO
from trainer.cli import main

EXAMPLES = REPO / "examples" / "data"
NAMES = ["guanaco", "messages", "sharegpt_tools", "wanjuan_text", "mix"]
# what the pipeline must find: rows read, samples kept, formats
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
    report = shown["report"]
    if name in FOUND:
        assert (report["read"], report["kept"], set(report["formats"].values())) == FOUND[name]
    run = warm.start(tmp_path, train)
    assert run.codes() == [0], run.text
    assert f"data: {report['read']} rows read, {report['kept']} samples kept" in run.text
    assert ("validation at step 2/2  loss " in run.text) == ("validation" in train["data"])
