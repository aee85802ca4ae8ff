"""What is found in an output folder: the part that is meant, the base, the tokenizer, the place of relative paths."""

import json
import shutil

import pytest
import torch

from tests.trainer.talker import PIRATE, learn, write_run
from trainer.chat.open import Overrides, open_session, overridden
from trainer.chat.target import Target, find_target
from trainer.checkpoints.checkpoint import Writers, seal
from trainer.checkpoints.results import describe, find_result
from trainer.cli import main
from trainer.config.job import Lora
from trainer.data.encode import Encoder
from trainer.data.templates import TEMPLATES
from trainer.errors import ConfigError
from trainer.models.lora import attach_lora

FULL = {"lora": None, "quantization": "none", "dtype": "fp32"}
LORA = {"quantization": "none", "dtype": "fp32"}


def part(folder, kind):
    """An adapter or a model as far as its files go; a checkpoint-N is sealed."""
    folder.mkdir(parents=True)
    config = {"adapter": ("adapter_config.json", {"peft_type": "LORA"}), "model": ("config.json", {})}[kind]
    (folder / config[0]).write_text(json.dumps(config[1]))
    (folder / f"{kind}.safetensors").touch()
    if folder.name.startswith("checkpoint-"):
        seal(folder, Writers(1, 1, split=False))
    return folder


@pytest.fixture
def job(tmp_path, monkeypatch):
    """A job's folder with a base, and a run in it that is to train an adapter; this process is elsewhere."""
    folder = tmp_path / "job"
    (folder / "base").mkdir(parents=True)
    write_run(folder / "outputs/x", "./base", settings={"output_dir": "outputs/x"})
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return folder


def test_the_base_lies_where_the_config_sees_the_output_folder_from(job):
    part(job / "outputs/x/adapter", "adapter")
    trained = describe(find_result(job / "outputs/x"))
    assert (trained.base, trained.tokenizer, trained.job_dir) == (f"{job}/base", f"{job}/base", job)
    assert trained.adapter == job / "outputs/x/adapter"


@pytest.mark.parametrize("place", ["given", "working directory", "beside"])
@pytest.mark.parametrize("said", ["outputs/x", "/lost/outputs/x"])
def test_the_base_of_a_moved_output_folder_is_looked_for(place, said, job, tmp_path, monkeypatch):
    output = tmp_path / "moved/away"
    write_run(output, "./base", settings={"output_dir": said})
    part(output / "adapter", "adapter")
    if place == "beside":
        shutil.copytree(job / "base", tmp_path / "moved/base")
    if place == "working directory":
        monkeypatch.chdir(job)
    trained = describe(find_result(output), job if place == "given" else None)
    assert trained.job_dir == (tmp_path / "moved" if place == "beside" else job)
    assert trained.base == f"{trained.job_dir}/base"


def test_a_base_that_is_nowhere_is_told_with_all_places(job, tmp_path):
    part(job / "outputs/x/adapter", "adapter")
    shutil.rmtree(job / "base")
    words = rf"config.yaml: model.path: got ./base, which is not there \(looked in {job} or {tmp_path}/elsewhere\)"
    with pytest.raises(ConfigError, match=words):
        describe(find_result(job / "outputs/x"))


def test_a_checkpoint_that_is_named_must_be_whole(job, capsys):
    checkpoint = part(job / "outputs/x/checkpoint-5", "adapter")
    assert find_result(checkpoint).part == find_result(checkpoint.parent, unfinished=True).part == checkpoint
    (checkpoint / "adapter_config.json").write_text("{}")
    assert main(["chat", str(checkpoint), "--once", "x"]) == 78
    assert "checkpoint-5: adapter_config.json has 2 bytes, written were" in capsys.readouterr().err


def test_a_part_that_the_config_knows_nothing_of_is_refused(job):
    write_run(job / "outputs/x", "./base", settings={"output_dir": "outputs/x"}, model={"path": "./base", **FULL})
    with pytest.raises(ConfigError, match=r"an adapter, but config.yaml says that all weights were trained"):
        find_result(part(job / "outputs/x/adapter", "adapter"))


def test_what_was_merged_into_the_output_folder_is_a_model_of_its_own(job):
    merged = part(job / "outputs/x/merged", "model")
    assert find_target(str(merged), None, None) == Target(str(merged), str(merged))


def test_a_run_as_the_adapter_may_still_be_training(job):
    part(job / "outputs/x/checkpoint-5", "adapter")
    target = find_target("owner/name", job / "outputs/x", None)
    assert (target.path, target.adapter) == ("owner/name", job / "outputs/x/checkpoint-5")
    assert target.source == f"{job}/outputs/x/config.yaml"


@pytest.mark.parametrize("done", [False, True])
def test_a_model_that_was_trained_whole_has_its_tokenizer(done, job, capsys):
    """A checkpoint has none: it is the base's."""
    output = write_run(job / "outputs/x", "./base", settings={"output_dir": "outputs/x"},
                       model={"path": "./base", **FULL})  # fmt: skip
    found = part(output / ("model" if done else "checkpoint-5"), "model")
    trained = describe(find_result(output, unfinished=True))
    assert (trained.adapter, trained.base) == (None, str(found))
    assert trained.tokenizer == (str(found) if done else f"{job}/base")
    if not done:
        assert main(["merge", str(found), "--to", str(job / "new")]) == 78
        assert "it has no adapter: of a run that trains all weights only the result" in capsys.readouterr().err


# --- PiSSA: a checkpoint's adapter belongs to a base that has given up what the adapter started from ---


@pytest.fixture(scope="module")
def pissa(talker, tmp_path_factory, small_tokenizer):
    """A run that is to train on the talker, with a checkpoint that has learnt to say Ahoy, and that model itself."""
    output = write_run(tmp_path_factory.mktemp("pissa") / "out", talker,
                       model={"path": str(talker), **LORA, "lora": {"r": 8, "init": "pissa", "dropout": 0.0}})
    encoder = Encoder(small_tokenizer, TEMPLATES["internlm2"])
    (row,) = encoder.encode([encoder.template.render(PIRATE)])
    model = attach_lora(opened(talker).model, Lora(r=8, alpha=8, init="pissa", dropout=0.0), str(talker))
    learn(model, [(row.ids, row.labels)], steps=40, rate=5e-3)
    checkpoint = output / "checkpoint-5"
    model.save_pretrained(checkpoint)
    seal(checkpoint, Writers(1, 1, split=False))
    return checkpoint, model, torch.tensor([row.ids])


def opened(folder, **overrides):
    overrides_of = Overrides(dtype="fp32", **overrides)
    return open_session(overridden(find_target(str(folder), None, None), overrides_of), overrides_of, lambda text: None)


def test_a_chat_with_a_pissa_checkpoint_is_one_with_the_trained_model(pissa, talker):
    checkpoint, model, ids = pissa
    with torch.no_grad():
        expected, found = model(ids).logits, opened(checkpoint).model(ids).logits
    assert torch.allclose(found, expected, atol=1e-4)
    assert not torch.allclose(opened(talker).model(ids).logits, expected, atol=1)


def test_a_pissa_checkpoint_is_not_put_on_a_quantised_base(pissa):
    words = r"quantization: got nf4 with .*checkpoint-5, a PiSSA checkpoint, allowed: none"
    with pytest.raises(ConfigError, match=words):
        opened(pissa[0], quantization="nf4")
