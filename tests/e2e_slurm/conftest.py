"""A real Slurm, and the trainer's image on the machine that is all of its nodes."""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.cli_runner import Launch

ROOT = Path(__file__).parents[2]
# Limits and the runtime that podman needs on machines like CI's; beside the repository.
CONTAINERS_CONF = ROOT.parent / "shared/tools/containers.conf"
BUILD_S = 1800


@pytest.fixture(scope="session")
def podman() -> dict[str, str]:
    """The environment under which podman runs containers here."""
    absent = [name for name in ("podman", "debootstrap") if shutil.which(name) is None]
    if absent:
        pytest.skip(f"no {', '.join(absent)} on PATH (make test-deps installs them)")
    if os.geteuid() != 0:
        pytest.skip("making the test image needs root")
    return {"CONTAINERS_CONF": str(CONTAINERS_CONF)} if CONTAINERS_CONF.exists() else {}


@pytest.fixture(scope="session")
def image(podman: dict[str, str]) -> str:
    """The trainer's image, built from this tree unless it is there already."""
    built = subprocess.run([sys.executable, "docker/build_test_image.py"], cwd=ROOT, env={**os.environ, **podman},
                           stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=BUILD_S)
    assert built.returncode == 0, built.stdout[-4000:]
    return built.stdout.split()[-1]


@pytest.fixture(scope="session")
def small_image(podman: dict[str, str]) -> str:
    """The Debian with Python that the trainer's image is built on."""
    spec = importlib.util.spec_from_file_location("build_test_image", ROOT / "docker/build_test_image.py")
    assert spec is not None and spec.loader is not None
    build = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(build)
    name: str = build.base_image()
    return name


@pytest.fixture
def hpc(launch: Launch, slurm_cluster: dict[str, str]) -> Launch:
    """The real command, with profiles of the real Slurm: `bare` and, in containers, `podman`."""
    launch.env.update(slurm_cluster)
    profiles = {name: {"backend": "slurm", "partition": "main", "grace": "20s", "container_runtime": runtime}
                for name, runtime in (("bare", "none"), ("podman", "podman"))}
    (launch.cwd / "clusters.yaml").write_text(yaml.safe_dump(profiles))
    return launch
