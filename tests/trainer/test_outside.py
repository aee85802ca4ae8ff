"""What another package adds to the trainer, found by its entry point: through the real commands, to a trained model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from safetensors import safe_open

REPO = Path(__file__).parents[2]
FAMILY = '''
"""acme: a Llama whose weights are called otherwise."""

from trainer.families.card import Card, Layout, NewModels
from trainer.families.native import native_model
from trainer.families.shape import tiny


def config(raw):
    from transformers import LlamaConfig

    return LlamaConfig.from_dict({**raw, "model_type": "llama"})


CARD = Card(
    "acme", config, native_model, lambda name, tensor, config: [(name.removeprefix("acme."), tensor)],
    Layout(lambda weights, config: {f"acme.{name}": weight for name, weight in weights.items()}),
    template="chatml",
    new=NewModels("AcmeForCausalLM", {"rms_norm_eps": 1e-5, "max_position_embeddings": 512}, {"tiny": tiny()}),
)
'''


@pytest.fixture
def launch(tmp_path):
    """The real command in an empty folder, where a package `acme` is installed."""
    package = tmp_path / "site"
    (package / "acme-1.dist-info").mkdir(parents=True)
    (package / "acme.py").write_text(FAMILY)
    (package / "acme-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: acme\nVersion: 1\n")
    (package / "acme-1.dist-info/entry_points.txt").write_text("[launch.families]\nacme = acme:CARD\n")
    environ = {**os.environ, "LAUNCH_HOME": str(tmp_path / "home"), "PYTHONPATH": f"{package}:{REPO}"}

    def run(*words: str) -> str:
        done = subprocess.run([sys.executable, "-m", "launcher.cli", *words], cwd=tmp_path, env=environ, text=True,
                              capture_output=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout + done.stderr

    return run


def test_a_family_of_another_package_is_made_estimated_trained_and_sampled(launch, tmp_path):
    launch("new-model", "--family", "acme", "--size", "tiny", "--out", "base")
    with safe_open(tmp_path / "base/model.safetensors", framework="pt") as held:
        names = set(held.keys())
    assert all(name.startswith("acme.") for name in names)
    (tmp_path / "base/chat_template.jinja").unlink()  # then the card says which it is
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "Who?", "completion": "Nobody."}) + "\n")
    train = {"settings": {"output_dir": "out"}, "model": {"path": "base", "quantization": "nf4"},
             "data": {"sources": [{"path": "rows.jsonl"}], "max_length": 64},
             "optimizer": {"max_steps": 2, "batch_size": 1, "deepspeed": None}}  # fmt: skip
    (tmp_path / "job.yaml").write_text(yaml.safe_dump({"name": "acme", "train": train}))
    assert "parameters" in launch("estimate", "job.yaml", "--gpu-memory", "80GiB")
    assert "template: chatml" in launch("local", "job.yaml")
    assert (tmp_path / "out/adapter/adapter_model.safetensors").exists()
    (tmp_path / "prompts.txt").write_text("Who?\n")
    assert "Who?" in launch("sample", "out", "--prompts", "prompts.txt", "--max-new-tokens", "2")
