"""Code that comes with a model: never run unless a job asks for it, of a pinned commit, and of that repository only."""

import json
import sys

import pytest
from huggingface_hub import constants

from tests.trainer.reference import BY_NAME, write_checkpoint
from tests.trainer.test_families import CPU, job
from trainer.config.job import TrainConfig
from trainer.errors import ConfigError
from trainer.models import hub
from trainer.models.load import load_model

COMMIT = "0123456789abcdef0123456789abcdef01234567"
CODE = """
import sys
from transformers import GPT2Config, GPT2LMHeadModel
sys.modules["code_of_the_model_ran"] = sys

class OddConfig(GPT2Config):
    model_type = "odd_model"

class OddModel(GPT2LMHeadModel):
    config_class = OddConfig
"""
PLACES = {"AutoConfig": "modeling_odd.OddConfig", "AutoModelForCausalLM": "modeling_odd.OddModel"}
ODD = {"model_type": "odd_model", "n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 40,
       "architectures": ["OddModel"], "auto_map": PLACES}  # fmt: skip


@pytest.fixture
def on_the_hub(tmp_path, monkeypatch):
    """A hub that cannot be reached, and a cache with one commit of somebody/odd in it."""
    from safetensors.torch import save_file
    from transformers import GPT2Config, GPT2LMHeadModel

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.delitem(sys.modules, "code_of_the_model_ran", raising=False)
    folder = tmp_path / "models--somebody--odd" / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_layer=1, n_head=2))
    weights = {name: tensor for name, tensor in model.state_dict().items() if name != "lm_head.weight"}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(ODD))
    (folder / "modeling_odd.py").write_text(CODE)
    return folder


def pinned(**model):
    return job("somebody/odd", revision=COMMIT, **model)


def test_a_models_code_is_not_run_unless_the_job_says_so(on_the_hub):
    with pytest.raises(ConfigError, match=r"somebody/odd of .*trust_remote_code: true with a revision of 40"):
        load_model(pinned(), CPU)
    assert "code_of_the_model_ran" not in sys.modules


def test_a_pinned_models_code_is_run_when_the_job_says_so(on_the_hub):
    model = load_model(pinned(trust_remote_code=True), CPU)
    assert type(model).__name__ == "OddModel"
    assert "code_of_the_model_ran" in sys.modules


def test_code_of_another_repository_is_refused(on_the_hub):
    theirs = {"AutoModelForCausalLM": "else/where--modeling_odd.OddModel"}
    (on_the_hub / "config.json").write_text(json.dumps({**ODD, "auto_map": theirs}))
    with pytest.raises(ConfigError, match="whose code is that of else/where, allowed: code of its own repository"):
        load_model(pinned(trust_remote_code=True), CPU)
    assert "code_of_the_model_ran" not in sys.modules


def test_pain_18_internlm2_needs_none_of_its_own_code(on_the_hub):
    """Pain 18 (InternLM#400, transformers#48479): InternLM2's code breaks with new versions of transformers."""
    write_checkpoint(on_the_hub, BY_NAME["internlm2"])
    raw = json.loads((on_the_hub / "config.json").read_text())
    (on_the_hub / "config.json").write_text(json.dumps({**raw, "auto_map": ODD["auto_map"]}))
    for trusted in (False, True):
        assert type(load_model(pinned(trust_remote_code=trusted), CPU)).__name__ == "LlamaForCausalLM"
    assert "code_of_the_model_ran" not in sys.modules


def test_a_revision_that_is_not_there_is_named(on_the_hub):
    with pytest.raises(ConfigError, match="got somebody/odd at revision v2: not a folder here, and not on the hub"):
        load_model(job("somebody/odd", revision="v2"), CPU)


def test_a_revision_of_a_folder_is_refused(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base").mkdir()
    with pytest.raises(ConfigError, match="got main with base, a folder of this machine"):
        hub.checkpoint_folder("base", "main")


@pytest.mark.parametrize(("path", "revision"), [("a/b", None), ("a/b", "main"), ("a/b", COMMIT[:39]), ("./b", COMMIT)])
def test_code_is_trusted_at_a_pinned_commit_of_the_hub_only(path, revision):
    with pytest.raises(ValueError, match=r"got .*trust_remote_code true with"):
        job(path, revision=revision, trust_remote_code=True)
    assert isinstance(pinned(trust_remote_code=True), TrainConfig)
