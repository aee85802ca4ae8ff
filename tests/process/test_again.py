"""Going on with a run, new folders, and the commands that are told: the real command with a trainer without a model."""

import json
import re
import shlex
import shutil
import signal
import time

import pytest
import yaml

from launcher.runs.store import RunStore
from launcher.services.prepare import Request
from launcher.services.resume import command_of
from tests.contract.sites import kubernetes_at
from tests.toy_trainer import write_toy

PATIENCE_S = 120
CUT = "train.optimizer.max_steps=3"


@pytest.fixture
def job(launch):
    """Writes a job whose trainer is the toy."""

    def write(output_dir=None, backend="local", **fields):
        profile = {"backend": backend, "grace": "5s", "python": str(write_toy(launch.cwd))}
        (launch.cwd / "clusters.yaml").write_text(yaml.safe_dump({"place": profile}))
        train = {"settings": {"output_dir": output_dir}, "model": {"path": "unread"},
                 "data": {"sources": [{"path": "unread"}]}, "optimizer": {"max_steps": 2}}  # fmt: skip
        values = {"name": "toy", "cluster": "place", "train": train, **fields}
        (launch.cwd / "job.yaml").write_text(yaml.safe_dump(values))

    return write


def submitted(launch, *words):
    """The record of a run that has ended."""
    launch.ok("submit", "job.yaml", *words)
    run = launch.json("list")[-1]
    deadline = time.monotonic() + PATIENCE_S
    while launch.json("status", run["run"])[0]["state"] in ("pending", "running"):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return json.loads((launch.run_dir(run["run"]) / "run.json").read_text())


def told_folder(launch, run):
    """The output folder that the trainer was given."""
    return yaml.safe_load((launch.run_dir(run["run_id"]) / "train.yaml").read_text())["settings"]["output_dir"]


def test_every_run_of_a_job_that_names_no_folder_has_one_of_its_own(launch, job):
    job()
    first, second = submitted(launch), submitted(launch)
    other = submitted(launch, "--set", "train.optimizer.lr=5e-4")
    folders = {run["run_id"]: told_folder(launch, run) for run in (first, second, other)}
    assert folders == {run_id: f"outputs/{run_id}" for run_id in folders} and len(folders) == 3
    assert first["outputs"]["folder"] == str(launch.cwd / "outputs" / first["run_id"])


def test_an_id_whose_folder_is_still_there_is_not_given_again(launch, job):
    job()
    first = submitted(launch)
    shutil.rmtree(launch.run_dir(first["run_id"]))
    assert submitted(launch)["run_id"] == f"{first['run_id']}-2"
    dry = launch.ok("submit", "job.yaml", "--dry-run")
    assert f"output_dir: outputs/{first['run_id']}-3" in dry


def test_resume_goes_on_in_the_folder_of_that_run(launch, job):
    job()
    first = submitted(launch)
    again = submitted(launch, "--resume", first["run_id"], "--set", CUT)
    assert again["run_id"] != first["run_id"] and again["outputs"] == first["outputs"]
    assert told_folder(launch, again) == f"outputs/{first['run_id']}"
    other = launch.cwd / "elsewhere"
    other.mkdir()
    shutil.copy(launch.cwd / "job.yaml", other)
    launch.ok("submit", "elsewhere/job.yaml", "--resume", first["run_id"])
    run = json.loads((launch.run_dir(launch.json("list")[-1]["run"]) / "run.json").read_text())
    assert run["outputs"]["folder"] == told_folder(launch, run) == first["outputs"]["folder"]


def test_resume_turns_never_off(launch, job):
    job()
    text = (launch.cwd / "job.yaml").read_text()
    (launch.cwd / "job.yaml").write_text(text.replace("train:\n", "train:\n  runtime: {resume: never}\n"))
    first = submitted(launch)
    again = submitted(launch, "--resume", first["run_id"])
    assert yaml.safe_load((launch.run_dir(again["run_id"]) / "train.yaml").read_text())["runtime"]["resume"] == "auto"


@pytest.mark.parametrize(("field", "value", "allowed"), [
    ("train.settings.output_dir", "other", "outputs/{}"), ("train.runtime.resume", "never", "auto"),
])
def test_a_setting_that_resume_would_drop_is_refused(launch, job, field, value, allowed):
    job()
    first = submitted(launch)["run_id"]
    done = launch.run("submit", "job.yaml", "--set", f"{field}={value}", "--resume", first)
    assert done.returncode == 2 and done.stderr == (
        f"error: --set {field}={value}: {field}: is {value}, but --resume goes on with {allowed.format(first)}\n"
        "hint:  leave that --set out; for a folder of its own: --new instead of --resume\n")
    assert len(launch.json("list")) == 1


def test_a_setting_that_names_the_folder_of_the_run_is_none_that_is_dropped(launch, job):
    job()
    first = submitted(launch)
    same = f"train.settings.output_dir=./outputs/{first['run_id']}/"
    again = submitted(launch, "--set", same, "--resume", first["run_id"])
    assert again["outputs"]["folder"] == first["outputs"]["folder"]


def test_new_is_a_folder_beside_the_one_that_the_job_names(launch, job):
    job("all/mine")
    named, new = submitted(launch), submitted(launch, "--new")
    assert told_folder(launch, named) == "all/mine"
    assert told_folder(launch, new) == f"all/{new['run_id']}" and new["run_id"] == f"{named['run_id']}-2"


def test_resume_and_new_work_on_kubernetes(launch, job, tmp_path):
    with kubernetes_at(launch, tmp_path / "cluster") as (site, _):
        job("/tmp/volume/mine", "kubernetes")
        launch.ok("submit", "job.yaml")
        first = json.loads((launch.run_dir(launch.json("list")[-1]["run"]) / "run.json").read_text())
        assert first["outputs"]["folder"] is None and site.backend == "kubernetes"
        for word, folder in (("--resume", "/tmp/volume/mine"), ("--new", None)):
            words = [word, first["run_id"]] if word == "--resume" else [word]
            launch.ok("submit", "job.yaml", "--set", "name=other", *words)
            run = json.loads((launch.run_dir(launch.json("list")[-1]["run"]) / "run.json").read_text())
            assert told_folder(launch, run) == folder or told_folder(launch, run) == f"/tmp/volume/{run['run_id']}"
        for run in launch.json("list"):
            launch.ok("cancel", run["run"])


@pytest.mark.parametrize(("words", "said"), [
    (["--resume", "nothing"], "no run 'nothing'"),
    (["--resume", "RUN", "--new"], "--resume, --new: only one of the two"),
    (["--resume", "RUN", "--backend", "kubernetes"], "ran on cluster place, but this job goes to back end kubernetes"),
    (["--resume", "RUN", "--set", "train=null", "--set", "run=[x]"], "only jobs with `train` have an output folder"),
])
def test_what_cannot_be_gone_on_with_is_said(launch, job, words, said):
    job()
    run = submitted(launch)
    done = launch.run("submit", "job.yaml", *[run["run_id"] if word == "RUN" else word for word in words])
    assert done.returncode in (2, 4) and said in done.stderr and "Traceback" not in done.stderr
    assert len(launch.json("list")) == 1


def test_a_run_without_training_or_without_its_folder_is_not_gone_on_with(launch, job):
    job(train=None, run=["true"])
    plain = submitted(launch)
    job()
    done = launch.run("submit", "job.yaml", "--resume", plain["run_id"])
    assert "must be a run of a job with `train`, but" in done.stderr and done.returncode == 2
    run = submitted(launch)
    shutil.rmtree(run["outputs"]["folder"])
    done = launch.run("submit", "job.yaml", "--resume", run["run_id"])
    assert f"whose output folder {run['outputs']['folder']} is gone" in done.stderr and done.returncode == 2


def test_a_run_that_failed_ends_with_the_command_that_goes_on(launch, job):
    job()
    done = launch.run("submit", "--follow", "job.yaml", "--set", "train.optimizer.max_steps=null")
    run = launch.json("list")[-1]["run"]
    again = f"launch submit job.yaml --set train.optimizer.max_steps=null --resume {run}"
    assert done.returncode == 5 and f"; resume it: {again}\n" in done.stderr
    job(train=None, run=["false"])
    assert "--resume" not in launch.run("submit", "--follow", "job.yaml").stderr


def test_a_good_run_ends_with_its_folder_and_the_chat(launch, job):
    job()
    done = launch.run("submit", "--follow", "job.yaml")
    run = launch.json("list")[-1]["run"]
    assert f"results: {launch.cwd}/outputs/{run}\n* chat with the result: launch chat {run}\n" in done.stderr


def test_ctrl_c_ends_with_the_command_that_goes_on(launch, job):
    job()
    process = launch.start("local", "job.yaml", "--set", CUT)
    assert process.stderr is not None
    while not (line := process.stderr.readline()).startswith("* run "):
        assert line, process.wait()
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    assert process.wait(PATIENCE_S) == 130
    run = launch.json("list")[-1]["run"]
    assert f"stopped; to resume: launch local job.yaml --set {CUT} --resume {run}\n" in said


def test_ctrl_c_shows_the_end_of_the_log_and_a_command_that_works(launch, job):
    """There the trainer says what it has saved; what --resume settles is not typed again."""
    package = launch.cwd / "python/trainer"
    (package / "node").mkdir(parents=True)
    for folder in (package, package / "node"):
        (folder / "__init__.py").touch()
    (package / "node/entrypoint.py").write_text(  # of the profile that `local` does not look at
        f"import os, sys\nos.execv({str(launch.cwd / 'toy-python')!r}, "
        "['toy', 'trainer.node.entrypoint', *sys.argv[1:]])\n")
    job(env={"PYTHONPATH": str(package.parent)})
    dropped = ("train.settings.output_dir=mine", "train.runtime.resume=never")
    process = launch.start("local", "job.yaml", "--new", *(word for one in dropped for word in ("--set", one)),
                           "--set", "train.optimizer.max_steps=1", "--set", "train.optimizer.max_steps=100000")
    assert process.stderr is not None
    while not (line := process.stderr.readline()).startswith("rows 2 "):
        assert line, process.wait()
    process.send_signal(signal.SIGINT)
    said = process.stderr.read()
    assert process.wait(PATIENCE_S) == 130
    run = launch.json("list")[-1]["run"]
    again = f"launch local job.yaml --set train.optimizer.max_steps=100000 --resume {run}"
    assert re.search(rf"saved {run}/checkpoint-\d+ \(step \d+\)\n(?:.+\n)*\* stopped; to resume: {again}\n", said), said
    assert launch.run(*shlex.split(again.replace("100000", "1"))[1:]).returncode == 0


def test_a_job_learns_what_was_typed(launch, job):
    (launch.cwd / "job.yaml").write_text("name: a\nrun: [printenv, LAUNCH_COMMAND]\n")
    done = launch.run("local", "job.yaml", "--set", "name=b")
    assert "launch local job.yaml --set name=b\n" in done.stderr


def test_results_of_a_folder_that_another_run_has_are_not_collected(launch, job):
    job("mine")
    run = submitted(launch)
    store = RunStore(launch.home)
    (launch.cwd / "mine/metrics.jsonl").write_text("{}")
    for owner, collected in (("other", False), (run["run_id"], True)):
        (launch.cwd / "mine/.launch-run.json").write_text(json.dumps({"run": owner}))
        store.collect_results(store.find(run["run_id"]))
        assert (launch.run_dir(run["run_id"]) / "results/metrics.jsonl").exists() is collected


def test_what_was_typed_is_told_again_quoted(tmp_path):
    request = Request(tmp_path / "my job.yaml", ("train.data.sources=[{path: 'a b'}]", "name=$x"), None, "slurm", True)
    words = shlex.split(command_of("submit", request))
    assert words == ["launch", "submit", f"{tmp_path}/my job.yaml", "--set", "train.data.sources=[{path: 'a b'}]",
                     "--set", "name=$x", "--backend", "slurm", "--container"]  # fmt: skip
