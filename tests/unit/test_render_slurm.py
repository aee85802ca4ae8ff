"""What launch sends to Slurm: read by people as golden files, checked by bash."""

import os
import subprocess
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from launcher.backends.hosts.image import enroot_reference
from launcher.job.plan import Plan, misfits
from launcher.job.secrets import find_leaks
from tests import jobs

GOLDEN = Path(__file__).parent.parent / "golden"
RUNTIMES = ["none", "pyxis", "apptainer", "podman", "docker"]
RUN_JOB = {"name": "Hello, 世界\n#SBATCH --nodes=9", "run": ["bash", "-c", 'echo "$HOME" $(date) $$'],
           "resources": {"nodes": 1}}  # fmt: skip
TRAIN_JOB = {
    "name": "internlm2-7b-guanaco",
    "image": "registry.example.com/team/trainer:0.1",
    "resources": {"nodes": 2, "gpus_per_node": 8, "cpus_per_node": 64, "memory_per_node": "512Gi", "time_limit": "12h"},
    "mounts": [{"path": "/data", "host_path": "/lustre/data sets", "read_only": True}],
    "secrets": ["HF_TOKEN", "WANDB_API_KEY"],
    "env": {"NCCL_IB_HCA": "mlx5_0,mlx5_1", "UGLY": "a 'b' \"c\" $(d) $$ $e\n#f"},
    "restarts": 3,
    "train": {"model": {"path": "/data/internlm2-chat-7b"}, "data": {"sources": [{"path": "/data/guanaco.jsonl"}]}},
}
PROFILE = {"backend": "slurm", "partition": "gpu", "account": "nlp", "qos": "long", "constraint": "h200&ib",
           "grace": "90s"}  # fmt: skip
MEMLOCK = ["--ulimit=memlock=-1:-1"]
CASES = {
    "slurm-run-none": (RUN_JOB, {"backend": "slurm"}),
    "slurm-train-podman": (TRAIN_JOB, {**PROFILE, "container_runtime": "podman", "container_args": MEMLOCK}),
    "slurm-train-pyxis": (TRAIN_JOB, {**PROFILE, "container_runtime": "pyxis"}),
    "slurm-train-apptainer": (TRAIN_JOB, {**PROFILE, "container_runtime": "apptainer"}),
    **{name: (yaml.safe_load((GOLDEN / f"{name}.job.yaml").read_text()),
              yaml.safe_load((GOLDEN / f"{name}.profile.yaml").read_text()))
       for name in ("slurm-gres", "slurm-docker-image")},
}  # fmt: skip


def plan_of(job: dict, profile: dict, *, code: bool = True) -> Plan:
    """The plan of a job as a user writes it."""
    return jobs.plan_of(job, profile, run_id="demo-0123abcd",
                    code_digest="5eed" * 4 if code else None)


def render(job: dict, **profile: object) -> str:
    """Its script."""
    return jobs.rendered(plan_of(job, {"backend": "slurm", **profile})).text


def sbatch_lines(script: str) -> list[str]:
    """What sbatch reads: directives up to the first command."""
    lines = []
    for line in script.splitlines():
        if not line.startswith("#"):
            break
        lines.append(line)
    return [line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")]


def check_syntax(script: str) -> None:
    """bash reads it, and reads the scripts that it would write."""
    for text in [script, *here_documents(script)]:
        done = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True)
        assert (done.returncode, done.stderr) == (0, ""), text


def here_documents(script: str) -> list[str]:
    """The bash scripts inside the script."""
    parts = [part.split("\nLAUNCH_END\n")[0] for part in script.split("<<'LAUNCH_END'\n")[1:]]
    return [part for part in parts if part.startswith("#!/bin/bash")]


@pytest.mark.parametrize("name", CASES)
def test_golden(name):
    script = jobs.rendered(plan_of(*CASES[name])).text
    path = GOLDEN / f"{name}.sh"
    if os.environ.get("UPDATE_GOLDEN"):
        path.write_text(script, encoding="utf-8")
    assert script == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("runtime", RUNTIMES)
@pytest.mark.parametrize("nodes", [1, 2, 64])
@pytest.mark.parametrize("job", [RUN_JOB, TRAIN_JOB], ids=["run", "train"])
def test_bash_reads_every_script(runtime, nodes, job):
    script = render({**job, "resources": {**job["resources"], "nodes": nodes}}, container_runtime=runtime)
    assert len(here_documents(script)) == 2
    check_syntax(script)


@pytest.mark.parametrize("runtime", RUNTIMES)
def test_length_does_not_depend_on_nodes(runtime):
    lengths = {len(render({**TRAIN_JOB, "resources": {"nodes": nodes}}, container_runtime=runtime).splitlines())
               for nodes in (1, 2, 64, 1000)}
    assert len(lengths) == 1


def test_only_what_is_asked_for_is_asked_of_slurm():
    assert sbatch_lines(render(RUN_JOB)) == [
        "--job-name=demo-0123abcd", "--nodes=1", "--ntasks-per-node=1", "--signal=B:USR1@120", "--output=/dev/null",
        "--open-mode=append", "--requeue",
    ]  # fmt: skip


def test_everything_that_is_asked_for():
    want = {"--nodes=2", "--gpus-per-node=8", "--cpus-per-task=64", "--mem=524288M", "--time=0-12:00:00",
            "--signal=B:USR1@90", "--partition=gpu", "--account=nlp", "--qos=long", "--constraint='h200&ib'"}
    assert want <= set(sbatch_lines(jobs.rendered(plan_of(TRAIN_JOB, PROFILE)).text))


@pytest.mark.parametrize(("runtime", "option"), [
    ("podman", "--device=/dev/infiniband"), ("docker", "--device=/dev/infiniband"),
    ("apptainer", "--bind=/dev/infiniband")])
def test_several_nodes_with_gpus_see_the_machines_infiniband(runtime, option):
    found = [f"fabric=({option})" in render({"name": "demo", "run": ["true"], "resources": resources},
                                            container_runtime=runtime)
             for resources in ({"nodes": 2, "gpus_per_node": 8}, {"nodes": 1, "gpus_per_node": 8}, {"nodes": 2})]
    assert found == [True, False, False]


@pytest.mark.parametrize(("limit", "told"), [("12h", 120), ("8m", 120), ("4m", 60), ("1m", 15)])
def test_told_at_most_a_quarter_of_the_limit_before_it(limit, told):
    lines = sbatch_lines(render({**RUN_JOB, "resources": {"time_limit": limit}}, grace="120s"))
    assert f"--signal=B:USR1@{told}" in lines


@pytest.mark.parametrize(("image", "words"), [
    ("registry.example.com/team/trainer:0.1", "docker://registry.example.com#team/trainer:0.1"),
    ("localhost:5000/trainer", "docker://localhost:5000#trainer"),
    ("team/trainer:0.1", "docker://team/trainer:0.1"),
    ("ubuntu", "docker://ubuntu"),
])
def test_enroot_writes_a_registry_in_its_own_way(image, words):
    assert enroot_reference(image) == words


@pytest.mark.parametrize(("runtime", "image", "words"), [
    ("pyxis", "images/trainer.sqsh", "--container-image=./images/trainer.sqsh"),
    ("pyxis", "/lustre/images/trainer.sqsh", "--container-image=/lustre/images/trainer.sqsh"),
    ("apptainer", "/lustre/images/trainer.sif", "/lustre/images/trainer.sif"),
    ("apptainer", "images/trainer.sif", "images/trainer.sif"),
])
def test_an_image_file_is_taken_as_it_is(runtime, image, words):
    script = render({**RUN_JOB, "image": image}, container_runtime=runtime)
    assert f"  {words} \\" in script.splitlines()
    assert "import" not in script


@pytest.mark.parametrize(("runtime", "image", "why"), [
    ("none", "/a/b.sif", None),
    ("apptainer", "/a/b.sif", None),
    ("pyxis", "/a/b.sqsh", None),
    ("pyxis", "/a/b.sif", "pyxis reads no such files"),
    ("podman", "/a/b.sif", "podman reads no such files"),
    ("podman", "team/trainer:0.1", None),
])
def test_an_image_file_of_another_runtime_is_refused(runtime, image, why):
    profile = jobs.profile_of({"backend": "slurm", "container_runtime": runtime})
    found = [(loc, text.partition(": ")[2].partition(";")[0]) for loc, text in misfits({"image": image}, profile, "c")]
    assert found == ([(("image",), why)] if why else [])


@pytest.mark.parametrize("runtime", ["pyxis", "apptainer"])
def test_every_reference_has_an_image_file_of_its_own(runtime):
    images = ["a/trainer:1", "b/trainer:1", "a/trainer@sha256:" + "0" * 64, "a/trainer@sha256:" + "0" * 63 + "1"]
    scripts = [render({**RUN_JOB, "image": image}, container_runtime=runtime) for image in images]
    files = [next(line for line in script.splitlines() if line.startswith("export IMAGE=")) for script in scripts]
    assert len(set(files)) == len(images)


def test_no_value_of_the_submitter_is_rendered(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf-value")
    script = render(TRAIN_JOB)
    assert "hf-value" not in script
    assert os.environ["LAUNCH_HOME"] not in script
    assert "set -x" not in script
    assert "--export" not in script


def test_a_command_that_holds_the_delimiter():
    script = render({**RUN_JOB, "run": ["echo", "a\nLAUNCH_END\nLAUNCH_END_\nb"]})
    done = subprocess.run(["bash", "-n"], input=script, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "<<'LAUNCH_END__'" in script


@settings(max_examples=30, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_env_values_are_bash_words(value):
    job = {**RUN_JOB, "run": ["printenv", "VALUE"], "env": {"VALUE": value}}
    node = here_documents(render(job))[0]
    done = subprocess.run(["bash", "-c", node], capture_output=True)
    assert done.stdout == value.encode() + b"\n"


@pytest.mark.parametrize("option", [
    "--mail-type=END", "--nice=7", "--mem-bind=local", "--mem=0", "--gres=nvme:1", "--nodelist=n[1-3]", "--no-bell",
    "--switches=1@10:00", "--dependency=afterok:7", "--hint=nomultithread"])
def test_any_other_option_is_sbatchs(option):
    assert option in sbatch_lines(render({**RUN_JOB, "sbatch": [option]}).replace("'", ""))


@pytest.mark.parametrize("option", [
    "--tim=9", "--job=x", "--outp=x", "--gres=nvme:1,gpu:4", "--tres-per-node=gres/gpu:4", "--gres=gpu", "--clusters=b",
    "--no-kill", "--export-file=x", "--usage", "--help", "--ntasks=8", "--mem-per-cpu=1G", "--gpus=8", "--array=1-3",
    "--exclusive", "-N3", "mail", "--wrap=true", "--comment=x", "--nice=1\n#SBATCH --nodes=9"])
def test_what_launch_writes_itself_is_refused_in_any_spelling(option):
    with pytest.raises(ValidationError, match=r"cannot be given here|must be a long option"):
        jobs.job_of({**RUN_JOB, "sbatch": [option]})


def test_a_job_can_undo_what_its_cluster_asks_for():
    cluster = {"sbatch": {"exclusive": True, "options": ["--nice=1"], "gpu_type": "h100"}}
    lines = sbatch_lines(render({**RUN_JOB, "sbatch": {"exclusive": False, "options": ["--nice=9"]}}, **cluster))
    assert "--exclusive" not in lines and [line for line in lines if "nice" in line] == ["--nice=1", "--nice=9"]
    assert "--exclusive" in sbatch_lines(render(RUN_JOB, **cluster))


def test_arguments_reach_pyxis_and_need_a_runtime():
    script = render({**RUN_JOB, "image": "x"}, container_runtime="pyxis", container_args=["--container-writable"])
    assert "  --container-writable" in script
    with pytest.raises(ValidationError, match="needs a container_runtime"):
        render(RUN_JOB, container_args=["--x"])


@pytest.mark.parametrize("job", [
    {"sbatch": {"setup": ["export API_KEY=abcdef12345"]}},
    {"pod": {"containers": [{"name": "trainer", "env": [{"name": "HF_TOKEN", "value": "abcdefg1234"}]}]}}])
def test_a_secret_in_options_of_a_back_end_is_seen(job):
    assert [leak.variable for leak in find_leaks({**RUN_JOB, **job})] in (["API_KEY"], ["HF_TOKEN"])
