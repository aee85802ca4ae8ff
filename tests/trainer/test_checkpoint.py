from trainer.checkpoint import damage, newest_valid, seal


def checkpoint(folder, step, sealed=True):
    path = folder / f"checkpoint-{step}"
    (path / f"global_step{step}").mkdir(parents=True)
    (path / "adapter_model.safetensors").write_bytes(b"weights")
    (path / f"global_step{step}" / "optim.pt").write_bytes(b"state")
    if sealed:
        seal(path)
    return path


def test_the_newest_sealed_checkpoint_is_chosen_by_number(tmp_path):
    checkpoint(tmp_path, 9)
    newest = checkpoint(tmp_path, 10)
    assert newest_valid(tmp_path) == (newest, [])


def test_a_half_written_checkpoint_is_passed_over_and_named(tmp_path):
    good = checkpoint(tmp_path, 5)
    checkpoint(tmp_path, 10, sealed=False)
    assert newest_valid(tmp_path) == (good, ["checkpoint-10: it was not written to the end"])


def test_a_changed_or_missing_file_is_damage(tmp_path):
    path = checkpoint(tmp_path, 5)
    (path / "global_step5" / "optim.pt").write_bytes(b"other")
    assert damage(path) == "global_step5/optim.pt has changed since it was written"
    (path / "global_step5" / "optim.pt").unlink()
    assert damage(path) == "global_step5/optim.pt is missing"


def test_no_checkpoint_is_no_problem(tmp_path):
    assert newest_valid(tmp_path) == (None, [])
