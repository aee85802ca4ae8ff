"""A real Slurm, and the trainer's image on the machine that is all of its nodes."""

import importlib.util
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import IO

import pytest
import yaml

from tests.cli_runner import Launch

ROOT = Path(__file__).parents[2]
# Limits and the runtime that podman needs on machines like CI's; beside the repository.
CONTAINERS_CONF = ROOT.parent / "shared/tools/containers.conf"
BUILD_S = 1800


BUILD = pytest.StashKey[subprocess.Popen[bytes]]()
PRINTED = pytest.StashKey[IO[bytes]]()


def pytest_collection_finish(session: pytest.Session) -> None:
    """Begin to build the image when a test will want it: most of that is waiting, and other tests come first."""
    wanted = any("image" in getattr(item, "fixturenames", ()) for item in session.items)
    if wanted and not session.config.option.collectonly and no_podman() is None:
        printed = session.config.stash[PRINTED] = tempfile.TemporaryFile()  # noqa: SIM115  (read when built)
        session.config.stash[BUILD] = subprocess.Popen(
            [sys.executable, "docker/build_test_image.py"], cwd=ROOT, env={**os.environ, **containers_conf()},
            stdout=printed, stderr=subprocess.STDOUT)


def pytest_unconfigure(config: pytest.Config) -> None:
    """A session that ends early leaves no build behind."""
    build = config.stash.get(BUILD, None)
    if build and build.poll() is None:
        build.terminate()
        build.wait()


def no_podman() -> str | None:
    """Why no image can be built here, or None."""
    absent = [name for name in ("podman", "debootstrap") if shutil.which(name) is None]
    if absent:
        return f"no {', '.join(absent)} on PATH (make test-deps installs them)"
    return "making the test image needs root" if os.geteuid() else None


def containers_conf() -> dict[str, str]:
    """The variable by which podman finds the limits and the runtime that it needs here."""
    return {"CONTAINERS_CONF": str(CONTAINERS_CONF)} if CONTAINERS_CONF.exists() else {}


@pytest.fixture(scope="session")
def podman() -> dict[str, str]:
    """The environment under which podman runs containers here."""
    if reason := no_podman():
        pytest.skip(reason)
    return containers_conf()


@pytest.fixture(scope="session")
def image(podman: dict[str, str], pytestconfig: pytest.Config) -> str:
    """The trainer's image, built from this tree unless it is there already."""
    code = pytestconfig.stash[BUILD].wait(BUILD_S)
    pytestconfig.stash[PRINTED].seek(0)
    printed = pytestconfig.stash[PRINTED].read().decode()
    assert code == 0, printed[-4000:]
    return printed.split()[-1]


@pytest.fixture(scope="session")
def small_image(podman: dict[str, str], pytestconfig: pytest.Config) -> str:
    """The Debian with Python that the trainer's image is built on; two builds of it at once would be in each other's
    way."""
    if build := pytestconfig.stash.get(BUILD, None):
        build.wait(BUILD_S)
    spec = importlib.util.spec_from_file_location("build_test_image", ROOT / "docker/build_test_image.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    name: str = module.base_image()
    return name


@pytest.fixture
def hpc(launch: Launch, slurm_cluster: dict[str, str]) -> Launch:
    """The real command, with profiles of the real Slurm: `bare` and, in containers, `podman`."""
    launch.env.update(slurm_cluster)
    profiles = {name: {"backend": "slurm", "partition": "main", "grace": "20s", "container_runtime": runtime}
                for name, runtime in (("bare", "none"), ("podman", "podman"))}
    (launch.cwd / "clusters.yaml").write_text(yaml.safe_dump(profiles))
    return launch
