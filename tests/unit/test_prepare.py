"""From a file on disk to a plan: which profile counts, what the run id depends on."""

import dataclasses
from pathlib import Path

import pytest

from launcher.errors import SpecError
from launcher.services.job_model import default_profile
from launcher.services.prepare import Request, checked_run_id, on_this_machine, prepare

CLUSTERS = "one:\n  backend: slurm\n  partition: {partition}\n"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "job.yaml").write_text("name: a\nrun: ['true']\ncluster: one\n")
    return tmp_path


def write(path, partition):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(CLUSTERS.format(partition=partition))


def partition(folder, **more):
    request = Request(Path("job.yaml"), **more)
    return prepare(request, {"HOME": str(folder / "home"), "XDG_CONFIG_HOME": str(folder / "config")}).profile.partition


def test_profiles_are_looked_for_in_order(folder):
    write(folder / "config/launch/clusters.yaml", "user")
    assert partition(folder) == "user"
    write(folder / "clusters.yaml", "here")
    assert partition(folder) == "here"
    write(folder / "other.yaml", "option")
    assert partition(folder, clusters=Path("other.yaml")) == "option"


def test_home_is_used_without_xdg(folder):
    write(folder / "home/.config/launch/clusters.yaml", "home")
    assert prepare(Request(Path("job.yaml")), {"HOME": str(folder / "home")}).profile.partition == "home"


def test_no_profiles_at_all_names_where_they_are_looked_for(folder):
    with pytest.raises(SpecError, match=r"there is no clusters file: neither clusters.yaml nor .*/launch"):
        partition(folder)


def test_another_back_end_gets_plain_defaults(folder):
    write(folder / "clusters.yaml", "here")
    prepared = prepare(Request(Path("job.yaml"), backend="kubernetes"), {})
    assert (prepared.profile, prepared.cluster) == (default_profile("kubernetes"), None)


def test_on_this_machine_needs_no_profile(folder):
    prepared = prepare(on_this_machine(Request(Path("job.yaml"), ("name=b",))), {})
    assert (prepared.profile.backend, prepared.job.name, prepared.cluster) == ("local", "b", None)


def test_container_takes_the_runtime_of_this_machine(folder, monkeypatch):
    bin_folder = folder / "bin"
    bin_folder.mkdir()
    (bin_folder / "docker").write_text("#!/bin/sh\n")
    (bin_folder / "docker").chmod(0o755)
    monkeypatch.setenv("PATH", str(bin_folder))
    container = on_this_machine(Request(Path("job.yaml")), container=True)
    assert prepare(container, {}).profile.container_runtime == "docker"
    (bin_folder / "podman").write_text("#!/bin/sh\n")
    (bin_folder / "podman").chmod(0o755)
    assert prepare(container, {}).profile.container_runtime == "podman"
    with pytest.raises(SpecError, match=r"image: 'oras://team/trainer' cannot be run: podman knows no oras://, only docker://"):
        prepare(dataclasses.replace(container, overrides=(*container.overrides, "image=oras://team/trainer")), {})


def test_run_id_depends_on_job_profile_and_code_only(folder):
    def base_id(*overrides):
        return prepare(Request(Path("job.yaml"), overrides), {"HOME": "/"}).base_id

    write(folder / "clusters.yaml", "here")
    first = base_id()
    (folder / "job.yaml").write_text("# a comment\nname:   a\ncluster: one\nrun: ['true']\n")
    assert base_id() == first
    seen = {first, base_id("env.A=b"), base_id("code=.")}
    (folder / "more.py").write_text("")
    seen.add(base_id("code=."))
    write(folder / "clusters.yaml", "elsewhere")
    seen.add(base_id())
    assert len(seen) == 5


def test_code_is_found_beside_the_job_file(folder, monkeypatch):
    (folder / "jobs/src").mkdir(parents=True)
    (folder / "jobs/src/a.py").write_text("")
    (folder / "jobs/job.yaml").write_text("name: a\nrun: [x]\ncode: src\n")
    assert prepare(Request(Path("jobs/job.yaml")), {}).snapshot.files == ("a.py",)


@pytest.mark.parametrize("text", ["", "A", "a b", "../a", "x" * 54])
def test_bad_run_ids(text):
    with pytest.raises(SpecError, match=r"--run-id: must be lower-case letters"):
        checked_run_id(text)
