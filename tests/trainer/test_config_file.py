"""Whether a run may go on in a folder: what of two configs counts as another run."""

import pytest

from trainer.config_file import changed_sections

MINE = {"model": {"path": "base", "compute": None, "lora": {"r": 8, "dora": False}}, "data": {"max_length": 64},
        "optimizer": {"lr": 1e-3, "batch_size": 2, "accumulation": 4, "states": "float32"}}  # fmt: skip


def changed(section, **values):
    return changed_sections({**MINE, section: {**MINE[section], **values}}, MINE)


def test_the_same_is_the_same():
    assert changed_sections(MINE, MINE) == []


@pytest.mark.parametrize("values", [{"batch_size": 1, "accumulation": 8}, {"batch_size": 9}])
def test_how_rows_are_dealt_does_not_count(values):
    assert changed("optimizer", **values) == []


@pytest.mark.parametrize(("section", "values"), [
    ("model", {"path": "other"}), ("model", {"lora": {"r": 16, "dora": False}}), ("model", {"lora": None}),
    ("data", {"max_length": 128}), ("optimizer", {"lr": 1e-4}), ("optimizer", {"gone": 1}),
])  # fmt: skip
def test_what_trains_something_else_is_named(section, values):
    assert changed(section, **values) == [section]


def test_fields_that_an_older_trainer_did_not_know_do_not_count():
    older = {**MINE, "model": {"path": "base", "lora": {"r": 8}}, "optimizer": {"lr": 1e-3, "batch_size": 2}}
    assert changed_sections(older, MINE) == []
