"""A checkpoint by its name on the hub: its own config decides what it is, at the revision that the job names. A hub
that does not answer is no answer: never a model without images, and nothing that a restart cannot mend."""

import errno
import json
import os
import subprocess
import sys

import pytest
import yaml
from huggingface_hub import constants

from tests.fakes.hub import FakeHub
from trainer.errors import ConfigError, TrainError, UnreachableError
from trainer.models.hub import checkpoint_folder
from trainer.models.tokenizer import load_tokenizer
from trainer.node.transient import is_passing, read_error
from trainer.vision.form import find_form

LLAVA = {"model_type": "llava", "image_token_index": 7, "vision_config": {"image_size": 42, "patch_size": 14}}
SILENT = "acme/eye: not a folder here, and the hub does not answer: "
GREY = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A hub with acme/eye, which sees, and whose branch `words` reads text alone; with an empty cache."""
    fake = FakeHub()
    monkeypatch.setattr(constants, "ENDPOINT", fake.address)
    files = "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", fake.address + files)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    eye, words = tmp_path / "eye", tmp_path / "words"
    for folder, config in ((eye, LLAVA), (words, {"model_type": "llama"})):
        folder.mkdir()
        (folder / "config.json").write_text(json.dumps(config))
    (eye / "preprocessor_config.json").write_text(json.dumps(GREY))
    fake.repositories["acme/eye"] = {"main": eye, "words": words}
    yield fake
    fake.close()


@pytest.fixture
def silent_hub(hub):
    hub.close()
    return hub


def test_the_revision_of_the_job_decides_whether_a_model_sees(hub, small_tokenizer):
    form = find_form("acme/eye", small_tokenizer)
    assert form is not None and form.size == 42 and form.mean == (0.5, 0.5, 0.5)
    assert find_form("acme/eye", small_tokenizer, "words") is None


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_hub_that_is_out_of_order_is_no_text_model(hub, small_tokenizer, status):
    hub.status = status
    for ask in (find_form, lambda path, _: load_tokenizer(path), lambda path, _: checkpoint_folder(path)):
        with pytest.raises(UnreachableError, match=SILENT):
            ask("acme/eye", small_tokenizer)


def test_a_hub_that_cannot_be_reached_is_no_text_model(silent_hub, small_tokenizer):
    with pytest.raises(UnreachableError, match=SILENT):
        find_form("acme/eye", small_tokenizer)


def test_what_was_downloaded_before_is_enough(hub, small_tokenizer):
    before = find_form("acme/eye", small_tokenizer)
    hub.close()
    assert find_form("acme/eye", small_tokenizer) == before


@pytest.mark.parametrize(
    ("path", "revision", "words"),
    [("acme/ear", None, "acme/ear: not a folder here, and not on the hub"),
     ("acme/eye", "v9", "acme/eye at revision v9: not a folder here, and not on the hub"),
     ("two words", None, "two words: not a folder here, and not on the hub")],
)  # fmt: skip
def test_a_name_that_leads_nowhere_stays_so(hub, small_tokenizer, path, revision, words):
    with pytest.raises(ConfigError, match=words):
        find_form(path, small_tokenizer, revision)


def test_offline_is_the_users_choice_and_no_restart_changes_it(silent_hub, small_tokenizer, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="acme/eye: not a folder here, and not on the hub"):
        find_form("acme/eye", small_tokenizer)


@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json"])
@pytest.mark.parametrize("text", ["{", "[]", "\udcff", "[" * 100_000])
def test_a_file_that_is_no_json_object_is_named(hub, small_tokenizer, tmp_path, name, text):
    (tmp_path / "eye" / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(ConfigError, match=f"{name}: (cannot be read|got a list)"):
        find_form(str(tmp_path / "eye"), small_tokenizer)


def test_a_folder_without_config_is_no_text_model(hub, small_tokenizer, tmp_path):
    (tmp_path / "eye/config.json").unlink()
    for path in (str(tmp_path / "eye"), "acme/eye"):
        with pytest.raises(ConfigError, match=f"{path} has no config.json"):
            find_form(path, small_tokenizer)


def test_a_model_that_is_yet_to_be_made_reads_text(small_tokenizer):
    assert find_form(None, small_tokenizer) is None


def test_a_tokenizer_does_not_hide_that_the_config_beside_it_is_broken(small_tokenizer, tmp_path):
    small_tokenizer.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": ')
    with pytest.raises(ConfigError, match=r"config.json: cannot be read"):
        load_tokenizer(str(tmp_path))


@pytest.mark.parametrize(
    ("error", "passes"),
    [(OSError(errno.ESTALE, "Stale file handle"), True), (OSError(errno.EIO, "I/O error"), True),
     (TimeoutError(), True), (ConnectionResetError(), True), (FileNotFoundError(errno.ENOENT, "gone"), False),
     (PermissionError(errno.EACCES, "no"), False), (ValueError("malformed"), False)],
)  # fmt: skip
def test_a_volume_that_does_not_answer_is_asked_again(error, passes):
    wrapped = RuntimeError("a library's own words")
    wrapped.__cause__ = error
    for one in (error, wrapped):
        assert is_passing(one) == passes
        assert type(read_error("x", one)) is (UnreachableError if passes else ConfigError)


def test_the_exit_code_lets_restarts_try_again(tmp_path):
    """The port is one that nobody listens on."""
    (tmp_path / "rows.jsonl").write_text('{"messages": []}\n')
    (tmp_path / "train.yaml").write_text(yaml.safe_dump({
        "model": {"path": "acme/eye"}, "data": {"sources": [{"path": str(tmp_path / "rows.jsonl")}]},
        "settings": {"output_dir": str(tmp_path / "out")}, "optimizer": {"deepspeed": None},
    }))  # fmt: skip
    fake = FakeHub()
    fake.close()
    done = subprocess.run([sys.executable, "-m", "trainer.cli", "train", "--config", str(tmp_path / "train.yaml")],
                          env={**os.environ, "HF_ENDPOINT": fake.address, "HF_HOME": str(tmp_path)},
                          capture_output=True, text=True, timeout=120, check=False)  # fmt: skip
    assert done.returncode == TrainError.exit_code == 1, done.stderr
    assert "error: model.path: got acme/eye: not a folder here, and the hub does not answer" in done.stderr
    assert "hint:  a restart tries again" in done.stderr and "Traceback" not in done.stderr
