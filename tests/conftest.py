"""What all tests share: options, skips that can be made failures, a run folder of their own, the real CLI."""

import gc
import os
import signal
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests import slurm_cluster as slurm
from tests.cli_runner import Launch

# Models of tests are too small to share among cores, and the lanes of `make test` use them all. Torch reads this when
# it is loaded; so do the trainers that tests start.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The interpreter itself, not a version manager's shim, which takes several times as long to start, in every fake.
os.environ["PATH"] = f"{Path(sys.base_prefix) / 'bin'}{os.pathsep}{os.environ['PATH']}"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Options of the tests that need more than this machine."""
    parser.addoption("--e2e-k8s", action="store_true", help="run tests/e2e_k8s on the cluster of KUBECONFIG")
    parser.addoption("--e2e-image", default="", metavar="IMAGE", help="trainer image of the e2e jobs")
    parser.addoption("--e2e-volume-path", default="", metavar="PATH",
                     help="folder that all nodes share, writable for user 1000; e2e jobs see it through a claim")
    parser.addoption("--e2e-lose-node", default="", metavar="CMD", help="command that cuts off the node it is given")
    parser.addoption("--e2e-restore-node", default="", metavar="CMD", help="command that brings that node back")
    parser.addoption("--e2e-restart-apiserver", default="", metavar="CMD", help="command that restarts the API server")
    parser.addoption("--require", default="", metavar="NAME,...", help="needs whose skips become failures")


def pytest_configure(config: pytest.Config) -> None:
    """The one marker. A suite that a shell has put into the background inherits an ignored SIGINT, and would hand it to
    the commands that it interrupts. How long an example of Hypothesis takes says nothing about the code."""
    if find_spec("hypothesis"):  # a machine with a GPU may not have it
        from hypothesis import settings

        settings.register_profile("patient", deadline=None)
        settings.load_profile("patient")
    signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "needs(name): may skip; --require=name makes that a failure")


def pytest_collection_finish() -> None:
    """What is loaded by now stays: no collection of garbage has to look through it again."""
    gc.freeze()


def pytest_unconfigure() -> None:
    """The interpreter's end takes it apart."""
    gc.unfreeze()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[None]:
    """Turn the skip of a test that `--require` names into a failure."""
    report = yield
    required = set(filter(None, item.config.getoption("--require").split(",")))
    needed = {name for mark in item.iter_markers("needs") for name in mark.args}
    if report.skipped and not hasattr(report, "wasxfail") and needed & required:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome, report.longrepr = "failed", f"required by --require, but: {reason}"
    return report


@pytest.fixture(autouse=True)
def launch_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes the user's own runs and profiles."""
    home = tmp_path / "launch-home"
    monkeypatch.setenv("LAUNCH_HOME", str(home))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(home / "config"))
    monkeypatch.delenv("NO_COLOR", raising=False)
    return home


@pytest.fixture
def launch(tmp_path: Path, launch_home: Path) -> Launch:
    """The real command, in an empty working folder."""
    work = tmp_path / "work"
    work.mkdir()
    return Launch(home=launch_home, cwd=work)


@pytest.fixture(scope="session")
def slurm_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """The environment of a real Slurm, started for this session. Mark its tests `needs("slurm")`."""
    reason = slurm.missing()
    if reason:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("slurm")
    try:
        yield slurm.start(folder)
    finally:
        slurm.stop(folder)
