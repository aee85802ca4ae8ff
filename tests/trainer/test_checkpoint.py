import hashlib
import json

import pytest

from trainer.checkpoints.checkpoint import (
    Writers,
    check_writers,
    damage,
    newest_valid,
    part_folder,
    publish,
    remove_parts,
    seal,
)
from trainer.errors import ConfigError

TWO = Writers(2, 16, split=True)


def written(folder, step):
    """A checkpoint as all ranks leave it, without a seal."""
    path = folder / f"checkpoint-{step}"
    (path / f"global_step{step}").mkdir(parents=True)
    (path / "adapter_model.safetensors").write_bytes(b"weights")
    (path / f"global_step{step}" / "optim.pt").write_bytes(b"state")
    return path


def checkpoint(folder, step):
    path = written(folder, step)
    seal(path, TWO)
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_the_newest_sealed_checkpoint_is_chosen_by_number(tmp_path):
    checkpoint(tmp_path, 9)
    newest = checkpoint(tmp_path, 10)
    assert newest_valid(tmp_path) == (newest, [])


def test_a_half_written_checkpoint_is_passed_over_and_named(tmp_path):
    good = checkpoint(tmp_path, 5)
    written(tmp_path, 10)
    assert newest_valid(tmp_path) == (good, ["checkpoint-10: it was not written to the end"])


def test_a_changed_shortened_or_missing_file_is_damage(tmp_path):
    path = checkpoint(tmp_path, 5)
    (path / "global_step5" / "optim.pt").write_bytes(b"other")
    assert damage(path) == "global_step5/optim.pt has changed since it was written"
    (path / "global_step5" / "optim.pt").write_bytes(b"sta")
    assert damage(path) == "global_step5/optim.pt has 3 bytes, written were 5"
    (path / "global_step5" / "optim.pt").unlink()
    assert damage(path) == "global_step5/optim.pt is missing"


def test_the_manifest_has_the_size_and_hash_of_every_file(tmp_path):
    manifest = json.loads((checkpoint(tmp_path, 5) / "manifest.json").read_text())
    assert set(manifest["files"]) == {"adapter_model.safetensors", "global_step5/optim.pt"}
    assert manifest["files"]["global_step5/optim.pt"] == {
        "bytes": 5, "sha256": hashlib.sha256(b"state").hexdigest()}


def test_another_number_of_processes_cannot_read_it(tmp_path):
    path = checkpoint(tmp_path, 5)
    check_writers(path, TWO)
    with pytest.raises(ConfigError, match=r"got 4 processes, but .*checkpoint-5 was written by 2"):
        check_writers(path, Writers(4, 16, split=True))


def test_steps_of_another_size_cannot_go_on(tmp_path):
    with pytest.raises(ConfigError, match=r"got 32 rows a step .*checkpoint-5 was written with 16"):
        check_writers(checkpoint(tmp_path, 5), TWO._replace(rows_per_step=32))


def test_no_checkpoint_is_no_problem(tmp_path):
    assert newest_valid(tmp_path) == (None, [])


def test_published_ones_replace_older_ones_and_those_that_were_passed_over(tmp_path):
    for step in (1, 2, 3):
        written(part_folder(tmp_path), step)
        publish(tmp_path, step, TWO, keep=2)
    assert names(tmp_path) == ["checkpoint-2", "checkpoint-3"]
    (tmp_path / "checkpoint-3" / "adapter_model.safetensors").write_bytes(b"changed")
    for step in (3, 4):  # as after a resume from 2
        written(part_folder(tmp_path), step)
        publish(tmp_path, step, TWO, keep=1)
        assert newest_valid(tmp_path) == (tmp_path / f"checkpoint-{step}", [])
    assert names(tmp_path) == ["checkpoint-4"]


def test_a_damaged_later_one_never_costs_the_valid_one(tmp_path):
    written(tmp_path, 9)  # without a seal
    written(part_folder(tmp_path), 4)
    publish(tmp_path, 4, TWO, keep=1)
    assert newest_valid(tmp_path)[0] == tmp_path / "checkpoint-4"


def test_what_a_killed_save_has_left_is_removed(tmp_path):
    good = checkpoint(tmp_path, 5)
    written(part_folder(tmp_path), 6)
    assert newest_valid(tmp_path) == (good, [])
    remove_parts(tmp_path)
    assert names(tmp_path) == ["checkpoint-5"]


def test_checkpoints_without_our_seal_are_never_removed_nor_replaced(tmp_path):
    theirs = [written(tmp_path, step) for step in (1, 2, 9)] + [tmp_path / "checkpoint-best"]
    theirs[-1].mkdir()
    for step in (3, 4, 5):
        written(part_folder(tmp_path), step)
        publish(tmp_path, step, TWO, keep=2)
    assert all((path / "adapter_model.safetensors").exists() for path in theirs[:-1]) and theirs[-1].is_dir()
    assert {"checkpoint-4", "checkpoint-5"} <= set(names(tmp_path)) and "checkpoint-3" not in names(tmp_path)
    written(part_folder(tmp_path), 9)
    with pytest.raises(OSError, match="not empty"):
        publish(tmp_path, 9, TWO, keep=2)
    assert not (theirs[2] / "manifest.json").exists()
