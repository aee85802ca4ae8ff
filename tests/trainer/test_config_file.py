"""Whether a run may go on in a folder: what of two configs counts as another run."""

import pytest

from trainer.config.file import changes, load_config, load_run_config
from trainer.errors import ConfigError

MINE = {"model": {"path": "base", "compute": None, "lora": {"r": 8, "dora": False}}, "data": {"max_length": 64},
        "optimizer": {"lr": 1e-3, "batch_size": 2, "accumulation": 4, "states": "float32"}}  # fmt: skip


def changed(section, **values):
    return list(map(str, changes({**MINE, section: {**MINE[section], **values}}, MINE)))


def test_the_same_is_the_same():
    assert changes(MINE, MINE) == []


@pytest.mark.parametrize("values", [{"batch_size": 1, "accumulation": 8}, {"batch_size": 9}])
def test_how_rows_are_dealt_does_not_count(values):
    assert changed("optimizer", **values) == []


@pytest.mark.parametrize(("section", "values", "told"), [
    ("model", {"path": "other"}, 'model.path: "other" -> "base"'),
    ("model", {"lora": {"r": 16, "dora": False}}, "model.lora.r: 16 -> 8"),
    ("model", {"lora": None}, 'model.lora: null -> {"r": 8, "dora": false}'),
    ("data", {"max_length": 128}, "data.max_length: 128 -> 64"),
    ("optimizer", {"lr": 1e-4}, "optimizer.lr: 0.0001 -> 0.001"),
    ("optimizer", {"gone": 1}, "optimizer.gone: 1 -> null"),
    ("data", {"max_length": "x" * 99}, f'data.max_length: "{"x" * 56}... -> 64'),
])  # fmt: skip
def test_what_trains_something_else_is_named_with_both_values(section, values, told):
    assert changed(section, **values) == [told]


@pytest.mark.parametrize(("text", "got"), [("[1, 2]", "list"), ("hello", "str"), ("", "NoneType")])
def test_a_file_that_holds_no_sections_is_named(tmp_path, text, got):
    (tmp_path / "config.yaml").write_text(text)
    for read in (load_config, load_run_config):
        with pytest.raises(ConfigError, match=f"config.yaml: got a {got}, allowed: the sections of a trainer's config"):
            read(tmp_path / "config.yaml")


def test_fields_that_an_older_trainer_did_not_know_do_not_count():
    older = {**MINE, "model": {"path": "base", "lora": {"r": 8}}, "optimizer": {"lr": 1e-3, "batch_size": 2}}
    assert changes(older, MINE) == []
