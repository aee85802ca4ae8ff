"""From a job and a profile to a plan: defaults, and what does not fit."""

import pytest
import yaml

from launcher.job.plan import DEFAULT_IMAGE, MAX_SHM, misfits
from launcher.job.spec import Mount
from launcher.services.job_model import default_profile
from tests.jobs import plan_of, profile_of
from trainer.config.job import config_text

TRAIN = {"model": {"path": "m"}, "data": {"sources": [{"path": "x"}]}}


def plan(job=None, profile=None):
    return plan_of({"name": "a", "run": ["x"], **(job or {})}, {"backend": "slurm", **(profile or {})}, run_id="a-1")


def train_sections(**train):
    job = {"run": None, "train": {**TRAIN, **train}}
    return yaml.safe_load(plan(job).payload.files["train.yaml"])


def test_defaults():
    found = plan()
    assert (found.image, found.nodes, found.gpus_per_node, found.processes_per_node) == (DEFAULT_IMAGE, 1, 0, 1)
    assert (found.memory, found.time_limit_s, found.grace_s, found.shm) == (None, None, 120, 2**30)


@pytest.mark.parametrize(("resources", "shm"), [
    ({"shm": "3Gi"}, 3 * 2**30), ({"memory_per_node": "8Gi"}, 2**31), ({"memory_per_node": "512Gi"}, MAX_SHM),
    ({"memory_per_node": "8Gi", "shm": "1G"}, 10**9)])
def test_shm(resources, shm):
    assert plan({"resources": resources}).shm == shm


def test_one_process_for_each_gpu():
    assert plan({"resources": {"gpus_per_node": 8}}).processes_per_node == 8


def test_the_jobs_own_env_and_mounts_win():
    profile = {"env": {"A": "profile", "B": "profile"}, "mounts": [{"path": "/a", "host_path": "/profile"},
                                                                   {"path": "/b", "host_path": "/profile"}]}
    found = plan({"env": {"A": "job"}, "mounts": [{"path": "/a", "host_path": "/job"}]}, profile)
    assert found.env == {"A": "job", "B": "profile"}
    assert found.mounts == (Mount(path="/a", host_path="/job"), Mount(path="/b", host_path="/profile"))


def test_the_trainer_gets_every_default_written_out():
    sections = train_sections()
    assert list(sections) == ["settings", "model", "data", "optimizer", "runtime"]
    assert sections["settings"] == {"seed": 42, "output_dir": "outputs/a-1", "device": "auto"}
    assert sections["optimizer"]["deepspeed"]["zero_stage"] == 2
    assert "shape" not in sections["model"]
    assert sections["runtime"]["sample_prompts"] == []


def test_what_the_trainer_gets_is_valid_and_means_the_same():
    from trainer.config.job import TrainConfig

    new = {"init": "internlm2", "quantization": "none", "lora": None, "shape": {"num_layers": 2}}
    for changed in ({"model": new}, {"optimizer": {"deepspeed": {"config": "ds.json"}}}, {}):
        read = TrainConfig.model_validate(train_sections(**changed))
        want = TrainConfig.model_validate({**TRAIN, **changed, "settings": {"output_dir": "outputs/a-1"}})
        assert read == want


def test_an_output_dir_is_kept():
    assert train_sections(settings={"output_dir": "/out"})["settings"]["output_dir"] == "/out"


@pytest.mark.parametrize(("named", "mounts", "own"), [
    (None, [], "outputs/a-1"), ("outputs/x", [], "outputs/a-1"), ("/out/x", [], "/out/a-1"), ("x", [], "a-1"),
    ("/out", [{"path": "/out", "host_path": "/h"}], "/out/a-1"),
    ("/out/x/", [{"path": "/out", "host_path": "/h"}], "/out/a-1")])
def test_a_new_folder_lies_beside_the_one_that_is_named_on_the_same_volume(named, mounts, own):
    job = {"name": "a", "train": {**TRAIN, "settings": {"output_dir": named}}, "mounts": mounts}
    found = plan_of(job, {"backend": "slurm"}, run_id="a-1", new_folder=True).payload
    assert found.outputs.folder == yaml.safe_load(found.files["train.yaml"])["settings"]["output_dir"] == own


def test_default_profile_is_a_valid_one():
    for backend in ("kubernetes", "slurm", "local"):
        assert default_profile(backend) == profile_of({"backend": backend})


def test_misfits_take_any_values():
    profile = profile_of({"backend": "slurm", "gpus_per_node": 8, "max_nodes": 2})
    for values in ({}, {"resources": 3}, {"resources": {"nodes": "x"}, "mounts": {}}, {"mounts": [1, {"claim": None}]}):
        assert list(misfits(values, profile, "c")) == []
    found = dict(misfits({"resources": {"nodes": 3, "gpus_per_node": 8}, "mounts": [{"claim": "d"}]}, profile, "c"))
    assert list(found) == [("resources", "nodes"), ("mounts", 0, "claim")]


@pytest.mark.parametrize("text", ["a\x85b", "\u2028", "x\u2029", "上海 no: #", "line\nline ", "\x85"])
def test_the_config_of_the_trainer_reads_back_as_it_was(text):
    """PyYAML's own writer turns U+0085 and its like into blanks."""
    assert yaml.safe_load(config_text({"model": {"path": text}})) == {"model": {"path": text}}
    assert "上海" not in text or "上海" in config_text({"path": text})
