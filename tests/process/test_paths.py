"""Paths that a job names: looked for where it runs here; elsewhere, what cannot be there or does not stay is said."""

import json

import pytest
import yaml

GONE = """name: a
train:
  model: {path: /nope/model}
  data:
    sources:
      - path: gone.csv
      - {path: here.jsonl}
      - {path: "part-*.jsonl"}
      - {path: owner/on-the-hub}
      - {path: s3://bucket/rows.jsonl}
      - {path: "none-*.jsonl"}
    validation: [{path: ./held-out}]
    image_dir: here.jsonl
    pack: maybe
  optimizer: {deepspeed: {config: ds.json}}
"""
SEEN = """error: job.yaml:3: train.model.path: must be a folder that exists, or a name on the Hugging Face hub, not \
'/nope/model' (seen from {here})
error: job.yaml:6: train.data.sources[0].path: must be {rows}, not 'gone.csv' (seen from {here})
error: job.yaml:11: train.data.sources[5].path: must be {rows}, not 'none-*.jsonl' (seen from {here})
error: job.yaml:12: train.data.validation[0].path: must be {rows}, not './held-out' (seen from {here})
error: job.yaml:13: train.data.image_dir: must be a folder that exists, not 'here.jsonl' (seen from {here})
error: job.yaml:15: train.optimizer.deepspeed.config: must be a file that exists, not 'ds.json' (seen from {here})
"""


@pytest.fixture
def here(launch):
    """The job's folder, with two files of rows."""
    for name in ("here.jsonl", "part-1.jsonl"):
        (launch.cwd / name).write_text("{}\n")
    return launch.cwd


@pytest.mark.parametrize("words", [("validate",), ("local",), ("submit",)])
def test_what_a_job_reads_here_is_looked_for_before_it_starts(launch, here, words):
    (here / "job.yaml").write_text(GONE)
    done = launch.run(*words, "job.yaml")
    rows = "a file or folder that exists, or a glob of files"
    [other] = [line for line in done.stderr.splitlines(keepends=True) if "job.yaml:14: train.data.pack: " in line]
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.replace(other, "") == SEEN.format(here=here, rows=rows)
    assert launch.json("list") == []


def job(here, **fields):
    train = {"settings": {"output_dir": fields.pop("output_dir", None)}, "model": {"path": "owner/base"},
             "data": {"sources": [{"path": path} for path in fields.pop("rows", ["owner/rows"])]}}  # fmt: skip
    train["model"]["path"] = fields.pop("model", "owner/base")
    values = {"name": "a", "cluster": "place", "image": "registry.example.com/x:1", "train": train, **fields}
    (here / "job.yaml").write_text(yaml.safe_dump(values))


def place(here, **profile):
    (here / "clusters.yaml").write_text(yaml.safe_dump({"place": profile}))


@pytest.mark.parametrize("profile", [
    {"backend": "kubernetes"}, {"backend": "slurm"}, {"backend": "local", "container_runtime": "podman"},
])
def test_elsewhere_nobody_can_look(launch, here, profile):
    place(here, **profile)
    job(here, model="/nope/model", rows=["gone.csv"])
    launch.ok("validate", "job.yaml")


def notes(launch, *words):
    """What is said of paths, by the field that names them."""
    found = [line.removeprefix("* ") for line in launch.run(*words).stderr.splitlines() if line.startswith("* train.")]
    return dict(line.split(": ", 1) for line in found)


MOUNTS = [{"path": "/data", "host_path": "/srv/data", "read_only": True}, {"path": "/out", "host_path": "/srv/out"}]
UNSEEN = "{} is neither below a mount nor in the job's code: the job finds it only if its image has it"
KUBERNETES, SLURM = {"backend": "kubernetes"}, {"backend": "slurm", "container_runtime": "pyxis"}
LOST = "{} is not below a mount: what the job writes there is lost when its container ends, also to a restart; name " \
       "a folder below one ({})"


@pytest.mark.parametrize("profile", [KUBERNETES, SLURM], ids=["kubernetes", "slurm"])
@pytest.mark.parametrize("words", [("render",), ("validate",), ("submit", "--dry-run")])
def test_in_a_container_paths_below_no_mount_are_said(launch, here, profile, words):
    place(here, mounts=MOUNTS, **profile)
    job(here, model="/nope/model", rows=["/data/a.csv", "/database/b.csv", "~/c.csv"], output_dir="/scratch/x")
    assert notes(launch, *words, "job.yaml") == {
        "train.model.path": UNSEEN.format("/nope/model"),
        "train.data.sources[1].path": UNSEEN.format("/database/b.csv"),
        "train.data.sources[2].path": UNSEEN.format("~/c.csv"),
        "train.settings.output_dir": LOST.format("/scratch/x", "/out"),
    }
    job(here, model="/data/model", output_dir="/out/x")
    assert notes(launch, *words, "job.yaml") == {}


def test_relative_paths_lead_to_a_pods_own_volume_and_to_the_jobs_folder_on_slurm(launch, here):
    rows = ["here.jsonl", "part-*.jsonl", "gone.csv", "/workspace/here.jsonl", "/opt/code/here.jsonl"]
    job(here, rows=rows, code=".")
    place(here, **KUBERNETES)
    run_id = launch.json("validate", "job.yaml")[0]["run_id"]
    lost = LOST.format(f"outputs/{run_id}", "the job has no mounts: add one")
    assert notes(launch, "render", "job.yaml") == {"train.data.sources[2].path": UNSEEN.format("gone.csv"),
                                                   "train.settings.output_dir": lost}  # fmt: skip
    assert len(notes(launch, "render", "job.yaml", "--set", "code=null")) == 6
    place(here, mounts=[{"path": "/workspace", "host_path": "/srv"}], **KUBERNETES)
    assert notes(launch, "render", "job.yaml") == {}
    job(here, rows=["here.jsonl", str(here / "a.csv")])
    place(here, **SLURM)
    assert notes(launch, "render", "job.yaml") == {}


@pytest.mark.parametrize("profile", [
    {"backend": "slurm"},
    {"backend": "slurm", "container_runtime": "apptainer", "container_args": ["--bind=/nope"]},
])
def test_where_all_paths_may_be_real_nothing_is_said(launch, here, profile):
    place(here, **profile)
    job(here, model="/nope/model", output_dir="/scratch/x")
    assert notes(launch, "validate", "job.yaml") == {}


def test_json_has_the_notes_and_a_command_has_none(launch, here):
    place(here, **KUBERNETES)
    job(here, model="/nope/model", output_dir="/out")
    found = json.loads(launch.ok("validate", "job.yaml", "--json"))["notes"]
    assert [note.split(":")[0] for note in found] == ["train.model.path", "train.settings.output_dir"]
    (here / "job.yaml").write_text("name: a\ncluster: place\nimage: x.example.com/y:1\nrun: [cat, /nope]\n")
    assert json.loads(launch.ok("validate", "job.yaml", "--json"))["notes"] == []
