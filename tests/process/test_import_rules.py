"""What is loaded when, the layers, and the wheel on its own: a launcher without torch."""

import os
import shutil
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from launcher.backends.base import Backend
from launcher.backends.registry import BACKENDS, load_backend
from launcher.runs.store import RunStore

ROOT = Path(__file__).parents[2]
TRAIN_JOB = "name: a\nresources: {nodes: 2}\ntrain:\n  model: {path: m}\n  data: {sources: [{path: x}]}\n"


def loaded_by(*args, cwd):
    """The top-level modules and the launcher's own that `launch ARGS` loads."""
    script = ("import sys; from launcher.cli import main\ntry: main(sys.argv[1:])\nexcept SystemExit as ended: "
              "assert not ended.code, ended.code\nprint(*sys.modules, file=sys.stderr)")
    done = subprocess.run([sys.executable, "-c", script, *args], capture_output=True, text=True, cwd=cwd, check=True)
    return {name if name.startswith("launcher.") else name.split(".")[0] for name in done.stderr.split()}


def test_help_loads_nothing_heavy(tmp_path):
    loaded = loaded_by("--help", cwd=tmp_path)
    assert "click" in loaded
    assert not loaded & {"pydantic", "torch", "rich", "kubernetes", "yaml", "ruamel", "subprocess", "launcher.job.spec"}


@pytest.mark.parametrize("backend", BACKENDS.own)
def test_a_render_loads_no_client_and_no_back_end(backend, tmp_path):
    (tmp_path / "job.yaml").write_text(TRAIN_JOB)
    loaded = loaded_by("render", "job.yaml", "--backend", backend, cwd=tmp_path)
    assert not loaded & {"torch", "transformers", "rich", "kubernetes", "subprocess"}
    assert not {name for name in loaded if name.startswith("launcher.backends.") and name.endswith(
        (".backend", ".client", ".processes"))}


def test_an_estimate_touches_neither_torch_nor_a_file():
    script = ("import builtins, sys, trainer.sizing.estimate as module; assert 'torch' not in sys.modules\n"
              "from trainer.config.job import TrainConfig\n"
              "job = module.Job(TrainConfig.model_validate({'model': {'path': 'x'}, 'data': {'sources': [{'path': 'x'}]"
              "}}), module.HUB_SHAPES['internlm/internlm2-7b'], module.Placement(1, 1))\n"
              "del builtins.open\nprint(module.estimate(job).parameters, 'torch' in sys.modules)")  # fmt: skip
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout == "7737708544 False\n", done.stderr


def test_the_clients_models_are_loaded_for_an_overlay_only(tmp_path):
    (tmp_path / "job.yaml").write_text("name: a\nrun: [x]\npod: {hostNetwork: true}\n")
    loaded = loaded_by("render", "job.yaml", "--backend", "kubernetes", cwd=tmp_path)
    assert "kubernetes" in loaded and "launcher.backends.kubernetes.client" not in loaded


def test_layers_hold():
    lint = [Path(sys.executable).parent / "lint-imports", "--no-cache"]
    done = subprocess.run(lint, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("name", BACKENDS.own)
def test_every_registered_name_loads(name, tmp_path):
    backend = load_backend(name, RunStore(tmp_path), {})
    assert isinstance(backend, Backend)
    assert BACKENDS.load(name).profile_model()(backend=name).backend == name


def test_every_module_can_be_imported_first():
    """Two that need each other would do so in one order only."""
    script = ("import importlib, pkgutil, sys, launcher\n"
              "for module in list(pkgutil.walk_packages(launcher.__path__, 'launcher.')):\n"
              "    for name in [name for name in sys.modules if name.startswith('launcher.')]: del sys.modules[name]\n"
              "    importlib.import_module(module.name); print(module.name)")
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, len(done.stdout.splitlines()) > 50) == (0, True), done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The bin folder of an empty venv that the wheel was installed into, with the launcher's own dependencies only."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    shutil.copytree(ROOT, source, ignore=shutil.ignore_patterns(".*", "tests", "build", "*.egg-info", "outputs"))
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    built = subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", folder, source], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv/bin/python"
    wheel = next(folder.glob("*.whl"))
    done = subprocess.run([*pip, "--python", python, "install", wheel], capture_output=True, text=True)
    if "connection" in done.stderr.lower():
        pytest.skip("the package index cannot be reached")
    assert done.returncode == 0, done.stderr
    return folder / "venv/bin"


def test_the_wheel_alone_renders_and_submits_without_torch(installed, tmp_path):
    environ = {"PATH": f"{installed}:{os.environ['PATH']}", "HOME": str(tmp_path), "LAUNCH_HOME": str(tmp_path / "h")}

    def launch(*args):
        done = subprocess.run([installed / "launch", *args], cwd=tmp_path, env=environ, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    absent = subprocess.run([installed / "python", "-c", "import torch"], capture_output=True, text=True)
    assert "No module named 'torch'" in absent.stderr
    (tmp_path / "train.yaml").write_text(TRAIN_JOB)
    for backend in BACKENDS.own:
        assert "zero_stage: 2" in launch("render", "train.yaml", "--backend", backend)
    (tmp_path / "run.yaml").write_text("name: a\nrun: [echo, hello]\n")
    handle = launch("submit", "run.yaml").strip()
    assert launch("logs", "-f", handle) == "hello\n"  # one node needs no prefix
    assert "succeeded" in launch("status", handle)
