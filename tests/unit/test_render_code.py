"""How a job's code comes into its containers: where it lies, that nobody writes there, what of the user's stays."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from launcher.backends.kubernetes.objects import run_objects
from launcher.backends.slurm.script import render_slurm
from launcher.errors import SpecError
from launcher.job.code.snapshot import archive, take_snapshot
from launcher.services.prepare import Request, on_this_machine, prepare
from tests import jobs
from tests.unit.test_render_k8s import PROFILE, RUN_JOB, TRAIN_JOB

TRAIN = {**TRAIN_JOB, "mounts": []}
ON_WORKSPACE = [{"path": "/workspace/", "claim": "team"}]


def plan_of(job: dict, profile: dict | None = None, code: bytes = b"archive"):
    """The plan of a job that has code."""
    return jobs.plan_of(job, {"backend": "kubernetes", **(profile or {})}, run_id="demo", code_archive=code,
                        code_digest="5eed")


def pod_of(job: dict, profile: dict | None = None) -> dict:
    """The spec of its pods."""
    return run_objects(plan_of(job, profile))[0]["spec"]["template"]["spec"]


def mounts_of(container: dict) -> dict[str, tuple[str, bool]]:
    """Of each path: the volume, and whether it is read-only."""
    return {mount["mountPath"]: (mount["name"], mount.get("readOnly", False)) for mount in container["volumeMounts"]}


@pytest.mark.parametrize("job", [RUN_JOB, TRAIN], ids=["run", "train"])
def test_code_lies_in_a_volume_of_the_pod_that_the_job_can_only_read(job):
    pod = pod_of(job)
    (unpacker,), (trainer,) = pod["initContainers"], pod["containers"]
    assert {"name": "code", "emptyDir": {}} in pod["volumes"]
    assert mounts_of(trainer)["/opt/code"] == ("code", True)
    assert mounts_of(unpacker) == {"/opt/code": ("code", False), "/etc/launch": ("config", True),
                                   "/workspace": ("workspace", False)}
    env = {item["name"]: item.get("value") for item in trainer["env"]}
    assert env["PYTHONPATH"] == "/opt/code"
    assert "LAUNCH_CODE" not in env


def test_the_command_is_the_jobs_own():
    assert pod_of({**RUN_JOB, "run": ["python", "train.py"]})["containers"][0]["command"] == ["python", "train.py"]
    assert pod_of(TRAIN)["containers"][0]["command"] == [
        "python3", "-m", "trainer.node.entrypoint", "--config", "/etc/launch/train.yaml"]


def test_a_job_without_code_has_no_init_container():
    plan = jobs.plan_of(RUN_JOB, {"backend": "kubernetes"}, run_id="demo")
    pod = run_objects(plan)[0]["spec"]["template"]["spec"]
    assert "initContainers" not in pod
    assert "/opt/code" not in mounts_of(pod["containers"][0])


def test_unpacking_asks_for_what_the_pod_has_but_no_gpus_and_runs_under_the_same_rules():
    pod = pod_of(TRAIN, PROFILE)
    (unpacker,), (trainer,) = pod["initContainers"], pod["containers"]
    amounts = {"cpu": "64", "memory": "512Gi"}
    assert unpacker["resources"] == {"requests": amounts, "limits": amounts}
    for key in ("image", "imagePullPolicy", "securityContext", "terminationMessagePolicy"):
        assert unpacker[key] == trainer[key]
    assert "resources" not in pod_of({**TRAIN, "resources": {"gpus_per_node": 1}})["initContainers"][0]


@pytest.mark.parametrize("job", [{"mounts": ON_WORKSPACE}, {}], ids=["the job's", "the cluster's"])
def test_nothing_is_written_to_a_volume_of_the_users_at_workspace(job):
    unpacker = pod_of({**RUN_JOB, **job}, None if job else {"mounts": ON_WORKSPACE})["initContainers"][0]
    assert list(mounts_of(unpacker)) == ["/opt/code", "/etc/launch"]
    assert "/workspace" not in " ".join(unpacker["command"])


def test_a_volume_below_workspace_is_not_seen_while_code_is_unpacked():
    pod = pod_of({**RUN_JOB, "mounts": [{"path": "/workspace/out", "claim": "team"}]})
    assert mounts_of(pod["containers"][0])["/workspace/out"] == ("mount-0", False)
    assert mounts_of(pod["initContainers"][0])["/workspace"] == ("workspace", False)
    assert "/workspace/out" not in mounts_of(pod["initContainers"][0])


@pytest.mark.parametrize("shell", ["sh", "busybox"])
def test_the_script_unpacks_every_kind_of_file(tmp_path, shell):
    """The very command of the init container, with its folders elsewhere."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} on PATH")
    source, parts, code, work = (tmp_path / name for name in ("source", "parts", "code", "work"))
    for folder in (source, parts, code, work):
        folder.mkdir()
    names = ["a.py", "sub/ünï 上海.py", "d" * 90 + "/" + "e" * 90 + "/f.txt", "x" * 200, "-rf", "'$HOME'"]
    for name in names:
        (source / name).parent.mkdir(parents=True, exist_ok=True)
        (source / name).write_text(name)
    (source / "run.sh").write_bytes(os.urandom(10_000))
    (source / "run.sh").chmod(0o755)
    (source / "link").symlink_to("sub/" + "l" * 150)
    packed = archive(take_snapshot(source))
    for number in range(2):
        (parts / f"code.tar.gz.{number}").write_bytes(packed[number * 5000:][:5000 if number == 0 else None])
    _, _, script = pod_of(RUN_JOB)["initContainers"][0]["command"]
    script = script.replace("/etc/launch", str(parts)).replace("/workspace", str(work))
    bin_folder = tmp_path / "bin"
    bin_folder.mkdir()
    for tool in ("sh", "cat", "tar", "gzip", "cp"):
        (bin_folder / tool).symlink_to(shutil.which("busybox" if shell == "busybox" else tool))
    subprocess.run([bin_folder / "sh", "-c", script], cwd=code, check=True, env={"PATH": str(bin_folder)})
    for copy in (code, work):
        assert take_snapshot(copy).digest == take_snapshot(source).digest


@pytest.mark.parametrize(("runtime", "line"), [
    ("podman", "--env=PYTHONPATH='/opt/code:/my libs:/more'"),
    ("docker", "--env=PYTHONPATH='/opt/code:/my libs:/more'"),
    ("apptainer", "export APPTAINERENV_PYTHONPATH='/opt/code:/my libs:/more'"),
    ("pyxis", "exec env PYTHONPATH='/opt/code:/my libs:/more' bash -c 'echo \"$HOME\" $(date) $$'")])
def test_a_jobs_own_python_path_stays_behind_the_code_in_containers(runtime, line):
    job = {**RUN_JOB, "env": {"PYTHONPATH": "/my libs:/more"}}
    script = render_slurm(plan_of(job, {"backend": "slurm", "container_runtime": runtime})).text
    assert line in [found.strip().removesuffix(" \\") for found in script.splitlines()]
    assert '"$RUN_DIR/code:/opt/code:ro"' in script


def test_a_jobs_own_python_path_stays_behind_the_code_in_pods():
    env = pod_of({**RUN_JOB, "env": {"PYTHONPATH": "/my libs"}})["containers"][0]["env"]
    assert [item["value"] for item in env if item["name"] == "PYTHONPATH"] == ["/opt/code:/my libs"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A job with code, in the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(profile: dict, **job: object) -> Request:
        (tmp_path / "clusters.yaml").write_text(yaml.safe_dump({"one": profile}))
        body = {"name": "a", "run": ["true"], "code": ".", "cluster": "one", **job, "image": "registry.example.com/x:1"}
        (tmp_path / "job.yaml").write_text(yaml.safe_dump(body, sort_keys=False))
        return Request(Path("job.yaml"))

    return write


K8S, SLURM = {"backend": "kubernetes"}, {"backend": "slurm", "container_runtime": "podman"}


@pytest.mark.parametrize("path", ["/opt/code", "/opt", "/opt/code/data", "/opt//code/", "/opt/x/../code"])
@pytest.mark.parametrize("profile", [K8S, SLURM], ids=["kubernetes", "podman"])
def test_a_mount_that_overlaps_the_code_is_refused(folder, path, profile):
    with pytest.raises(SpecError) as error:
        prepare(folder(profile, mounts=[{"path": "/data", "host_path": "/d"}, {"path": path, "host_path": "/d"}]), {})
    assert error.value.message == (f"job.yaml:9: mounts[1].path: {path} overlaps /opt/code, where launch puts the "
                                   "job's code; mount it at another path")
    with pytest.raises(SpecError, match=f"job.yaml:4: code: cluster 'one' mounts {path}, which overlaps /opt/code"):
        prepare(folder({**profile, "mounts": [{"path": path, "host_path": "/d"}]}), {})


def test_a_mount_there_is_fine_without_code_and_without_a_container(folder):
    mounts = [{"path": "/opt", "host_path": "/d"}]
    prepare(folder(K8S, mounts=mounts, code=None), {})
    prepare(folder({"backend": "slurm"}, mounts=mounts), {})
    request = on_this_machine(Request(Path("job.yaml")))
    prepare(request, {})
    with pytest.raises(SpecError, match="/opt overlaps /opt/code"):
        prepare(on_this_machine(request, container=True), {})


def test_a_volume_at_workspace_gets_a_note(folder):
    claim = [{"path": "/workspace", "claim": "team"}]
    (note,) = prepare(folder(K8S, mounts=claim), {}).notes
    assert note == ("code: the job finds it at /opt/code (read-only, on PYTHONPATH); relative paths start at "
                    "/workspace, which is claim team: launch writes nothing there")
    (note,) = prepare(folder({**K8S, "mounts": [{"path": "/workspace", "host_path": "/d"}]}), {}).notes
    assert "/workspace, which is /d of the node" in note
    assert prepare(folder(K8S, mounts=claim, code=None), {}).notes == []
    assert prepare(folder(K8S, mounts=[{"path": "/workspace/out", "claim": "team"}]), {}).notes == []
