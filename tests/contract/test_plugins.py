"""A job kind, a back end and a verb of another package: docs' example, installed from a wheel of its own."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.contract import sites
from tests.contract import test_backends as contract

ROOT = Path(__file__).parents[2]
JOB = {"name": "inline", "resources": {"nodes": 2},
       "python": {"program": 'import os, sys\nprint("node", os.environ["NODE_RANK"], *sys.argv[1:])\n',
                  "arguments": ["a b", "$x"]}}


@pytest.fixture(scope="session")
def installed(tmp_path_factory):
    """A folder with the example's wheel installed, and nothing else."""
    folder = tmp_path_factory.mktemp("plugin")
    shutil.copytree(ROOT / "examples/plugin", folder / "source")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    for words in (["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, folder / "source"],
                  ["install", "--no-deps", "--target", folder / "site", "--find-links", folder, "--no-index",
                   "launch-plugin-example"]):
        done = subprocess.run([*pip, *words], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    return folder / "site"


@pytest.fixture
def nice_site(launch):
    """The back end of the wheel."""
    return sites.Site("nice", launch, sites.processes_of, {"niceness": 3, "grace": "5s"})


@pytest.fixture
def site(request, launch, installed):
    """The place that the contract suite is run at: the back end of the wheel, unless a test names another one."""
    launch.env["PYTHONPATH"] = str(installed)
    return request.getfixturevalue(f"{getattr(request, 'param', 'nice')}_site")


globals().update({name: test for name, test in vars(contract).items() if name.startswith("test_")})


@pytest.mark.parametrize("site", ["local", "kubernetes", "fake_slurm", "nice"], indirect=True)
def test_a_kind_of_another_package_runs_on_every_back_end(site):
    site.job("true")
    profile = {"under-test": {"backend": site.backend, **site.profile, "python": sys.executable}}
    (site.launch.cwd / "clusters.yaml").write_text(yaml.safe_dump(profile))
    (site.launch.cwd / "job.yaml").write_text(yaml.safe_dump({**JOB, "cluster": "under-test"}))
    site.launch.ok("submit", "job.yaml")
    run_id = site.launch.json("list")[-1]["run"]
    site.wait(run_id, "succeeded")
    assert site.lines(run_id) == {node: [f"node {node} a b $x"] for node in (0, 1)}


def test_a_mistake_in_such_a_section_is_told_like_any_other(site):
    (site.launch.cwd / "job.yaml").write_text(yaml.safe_dump({"name": "a", "python": {"programm": "x"}}))
    done = site.launch.run("validate", "job.yaml")
    assert done.returncode == 2
    assert "job.yaml:3: python.programm: unknown key; did you mean program?" in done.stderr


def test_a_verb_of_another_package(site):
    run_id = site.submit("true")
    assert site.launch.ok("age", run_id).startswith(f"{run_id}  ")
    site.wait(run_id, "succeeded")
    assert "age" in site.launch.run("no-such-verb").stderr


def test_a_verb_that_needs_what_a_kind_cannot_do_names_those_that_can(site):
    (site.launch.cwd / "job.yaml").write_text(yaml.safe_dump(JOB))
    for verb in ("data", "estimate", "drill preempt"):
        done = site.launch.run(*verb.split(), "job.yaml")
        assert (done.returncode, "train" in done.stderr) == (2, True)


def test_a_run_of_a_back_end_that_is_gone_is_told_by_name(site):
    run_id = site.submit("true")
    site.wait(run_id, "succeeded")
    del site.launch.env["PYTHONPATH"]
    done = site.launch.run("status", run_id)
    assert (done.returncode, done.stdout) == (3, "")
    assert "back end 'nice' is not installed; there are kubernetes, slurm, local" in done.stderr
    assert site.launch.json("list")[0]["state"] == "succeeded"  # somebody has seen it
