"""What people are told who wrote something else than launch reads: what they meant, and how it is written."""

from pathlib import Path

import pytest

from launcher.errors import SpecError
from launcher.services.prepare import Request, prepare

JOB = "name: a\ncluster: c\nrun: [\"true\"]\n"
TRAIN = "name: a\ntrain:\n  model: {path: x}\n  data: {sources: [{path: y}]}\n"


def refused(tmp_path, monkeypatch, job: str, clusters: str = "c: {backend: slurm}\n") -> list[str]:
    """The lines of the message."""
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(job)
    Path("clusters.yaml").write_text(clusters)
    with pytest.raises(SpecError) as caught:
        prepare(Request(Path("job.yaml")), {"HOME": str(tmp_path)})
    return caught.value.message.splitlines()


@pytest.mark.parametrize(("job", "said"), [
    (JOB + "partition: gpu\n", "partition: unknown key; did you mean sbatch.partition?"),
    (JOB + "queue: team\n", "queue: unknown key; queue is a setting of kubernetes profiles, in clusters.yaml"),
    (JOB + "output_dir: /x\n", "output_dir: unknown key; did you mean train.settings.output_dir?"),
    (JOB + "resources: {gpus: 8}\n", "resources.gpus: unknown key; did you mean gpus_per_node?"),
    (JOB + "gpus: 8\n", "gpus: unknown key; did you mean resources.gpus_per_node?"),
    (JOB + "sbatch: {exclusive: \"yes\"}\n",
     "sbatch.exclusive: must be true or false, or user, mcs or topo, not 'yes'"),
    (JOB + "sbatch: {setup: module load x}\n",
     "sbatch.setup: must be a list, such as ['module load x'], not 'module load x'"),
    (JOB.replace('["true"]', "echo a b"), "run: must be a list, such as [echo, a, b], not 'echo a b'"),
    (JOB + "sbatch: {exclude: [n1, n2]}\n", "sbatch.exclude: must be text, such as 'n1,n2', not a list"),
    (JOB + "resources: {nodes: \"2\"}\n",
     "resources.nodes: must be a whole number, so without quotes: 2, not '2'"),
    (JOB + "mounts: [{path: /a}]\n", "mounts[0]: needs claim or host_path"),
    (JOB + 'env: {A: "\\ud83d\\ude00"}\n',
     "env.A: must be text with each character itself in place of two escapes, not '\\ud83d\\ude00'"),
    (JOB.replace("true", "a\\0b"), "run[0]: must be text without a NUL character, not 'a\\x00b'"),
    (JOB + "code: nowhere\n", "code: no such folder: {folder}/nowhere"),
    (TRAIN.replace("path: x", "name_or_path: x"), "train.model.name_or_path: unknown key; did you mean path?"),
    (TRAIN + "  optimizer: {learning_rate: 1}\n", "train.optimizer.learning_rate: unknown key; did you mean lr?"),
])
def test_what_was_meant_in_a_job(tmp_path, monkeypatch, job, said):
    lines = refused(tmp_path, monkeypatch, job)
    assert any(line.partition(" ")[2] == said.replace("{folder}", str(tmp_path)) for line in lines), lines


@pytest.mark.parametrize(("clusters", "said"), [
    ("c:\n  backend: slurm\n  gpu_type: h100\n",
     "clusters.yaml:3: c.gpu_type: unknown key; did you mean sbatch.gpu_type?"),
    ("c:\n  backend: slurm\n  options: [--x]\n",
     "clusters.yaml:3: c.options: unknown key; did you mean sbatch.options?"),
    ("c:\n  backend: slurm\n  sbatch: {partition: gpu}\n",
     "clusters.yaml:3: c.sbatch.partition: unknown key; did you mean partition?"),
    ("c: {partition: gpu}\n", "clusters.yaml:1: c.backend: is required: kubernetes, slurm or local"),
    ("c: {backend: Slurm}\n",
     "clusters.yaml:1: c.backend: must be kubernetes, slurm or local, not 'Slurm' (did you mean slurm?)"),
    ("c: {backend: kubernetes, partition: gpu}\n",
     "clusters.yaml:1: c.partition: this is a setting of slurm profiles, and this one is for kubernetes"),
    ("clusters:\n  c: {backend: slurm}\n", "clusters.yaml:1: clusters: a profile stands at the top level of the file, "
     "not below clusters: `c:` in the first column"),
    ("- c\n", "clusters.yaml:1: must be a mapping, such as `hpc: {backend: slurm}`, not a list"),
    ("c: {backend: slurm, grace: 90}\n",
     "clusters.yaml:1: c.grace: must be a duration such as 90s, 30m, 12h or 1d12h, not 90"),
    ("c: {backend: kubernetes, pod: {spec: {hostNetwork: true}}}\n",
     "clusters.yaml:1: c.pod.spec: the keys of a PodSpec stand here directly, with annotations and labels beside them"),
    ("c: {backend: kubernetes, pod: {zzz: 1}}\n",
     "clusters.yaml:1: c.pod.zzz: unknown key of PodSpec (see kubectl explain pod.spec)"),
])
def test_what_was_meant_in_a_profile(tmp_path, monkeypatch, clusters, said):
    assert refused(tmp_path, monkeypatch, JOB, clusters) == [said]


@pytest.mark.parametrize(("text", "said"), [
    ("name: a\n  run: [x]\n", "2: not YAML: ': ' inside a value, or a wrong indent; write one key a line, and quotes "
                             "around such a value"),
    ("resources:\n    nodes: 1\n  gpus_per_node: 2\n",
     "3: not YAML: is indented otherwise than the lines of its section above, or continues a value that has ended"),
    ("name: 'a\nrun: [x]\n", "1: not YAML: a quote is not closed"),
    ("name: @a\n", "1: not YAML: a value cannot begin with @; put it in quotes"),
    ("run: [a, b\nname: x\n", "2: not YAML: a `]` or a comma is missing before this"),
    ("a: 1\nb\nc: 2\n", "2: not YAML: a key without `: ` behind it"),
])
def test_yaml_that_cannot_be_read_is_said_in_plain_words(tmp_path, monkeypatch, text, said):
    (line,) = refused(tmp_path, monkeypatch, text)
    assert line.removeprefix("job.yaml:") == said


def test_a_clusters_file_that_is_not_there_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("job.yaml").write_text(JOB)
    with pytest.raises(SpecError) as caught:
        prepare(Request(Path("job.yaml"), clusters=Path("nope.yaml")), {})
    assert caught.value.message == "nope.yaml: no such file"


def test_a_clusters_file_beside_the_job_is_found_from_anywhere(tmp_path, monkeypatch):
    (tmp_path / "jobs").mkdir()
    (tmp_path / "jobs/job.yaml").write_text(JOB)
    (tmp_path / "jobs/clusters.yaml").write_text("c: {backend: slurm, partition: gpu}\n")
    monkeypatch.chdir(tmp_path)
    assert prepare(Request(Path("jobs/job.yaml")), {"HOME": str(tmp_path)}).profile.partition == "gpu"
