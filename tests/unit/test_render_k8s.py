"""What launch sends to Kubernetes: read by people as golden files, checked by the API's own schemas."""

import base64
import io
import os
import re
import tarfile
from pathlib import Path

import jsonschema
import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launcher.backends.kubernetes.objects import SECRET_PLACEHOLDER, UID_PLACEHOLDER, run_objects
from launcher.backends.kubernetes.pod import literal, quantity
from launcher.errors import SpecError
from launcher.job.plan import Plan
from tests import crds, jobs

API_VERSION = kubernetes_validate.latest_version()
RUN_ID = "demo-0123abcd"
GOLDEN = Path(__file__).parent.parent / "golden"

RUN_JOB = {"name": "Hello, 世界", "run": ["bash", "-c", 'echo "$HOME" $(date) $$'], "resources": {"nodes": 2}}
TRAIN_JOB = {
    "name": "internlm2-7b-guanaco",
    "image": "registry.example.com/team/trainer:0.1",
    "resources": {"nodes": 2, "gpus_per_node": 8, "cpus_per_node": 64, "memory_per_node": "512Gi", "time_limit": "12h"},
    "mounts": [{"path": "/data", "claim": "datasets", "read_only": True}, {"path": "/workspace", "claim": "team"}],
    "secrets": ["HF_TOKEN", "WANDB_API_KEY"],
    "env": {"NCCL_SOCKET_IFNAME": "eth0", "ANSWER": "no", "UGLY": "a 'b' \"c\" $(d) $$ $e\n#f"},
    "restarts": 3,
    "train": {"model": {"path": "/data/internlm2-chat-7b"}, "data": {"sources": [{"path": "/data/guanaco.jsonl"}]}},
}
PROFILE = {
    "backend": "kubernetes", "namespace": "research", "queue": "team-queue", "priority_class": "high",
    "service_account": "trainer", "image_pull_secrets": ["registry"], "image_pull_policy": "Always",
    "run_as_user": 1234, "node_selector": {"gpu": "h200"}, "extra_resources": {"rdma/hca": "1"}, "grace": "90s",
    "tolerations": [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}],
    "mounts": [{"path": "/scratch", "host_path": "/mnt/nvme"}],
}  # fmt: skip


def tar_gz(**files: bytes) -> bytes:
    """An archive of code."""
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz", compresslevel=0) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return raw.getvalue()


def plan_of(job: dict, profile: dict | None = None, *, run_id: str = RUN_ID, code: bytes | None = None) -> Plan:
    """The plan of a job as a user writes it."""
    return jobs.plan_of(job, profile or {"backend": "kubernetes"}, run_id=run_id, code_archive=code,
                        code_digest="5eed" * 4 if code else None)


def with_nodes(job: dict, nodes: int) -> dict:
    """The same job on another number of nodes."""
    return {**job, "resources": {**job["resources"], "nodes": nodes}}


def objects_of(plan: Plan) -> dict[str, dict]:
    """What a render says, by kind."""
    return {body["kind"]: body for body in run_objects(plan)}


def container_of(plan: Plan) -> dict:
    """The container of the pod template."""
    return objects_of(plan)["Job"]["spec"]["template"]["spec"]["containers"][0]


def env_of(plan: Plan) -> dict[str, dict]:
    """Its environment by name; no name may come twice."""
    env = container_of(plan)["env"]
    assert len({item["name"] for item in env}) == len(env)
    return {item["name"]: item for item in env}


JOB_SET = {"backend": "kubernetes", "kubernetes_kind": "JobSet"}
VARIANTS = {"run": (RUN_JOB, None), "train": (TRAIN_JOB, PROFILE), "jobset": (TRAIN_JOB, {**PROFILE, **JOB_SET})}


@pytest.mark.parametrize("variant", [*VARIANTS, "code"])
def test_render_is_the_golden_file(variant):
    plan = plan_of(RUN_JOB, code=b"a tar.gz") if variant == "code" else plan_of(*VARIANTS[variant])
    rendered, golden = jobs.rendered(plan).text, GOLDEN / f"k8s-{variant}.yaml"
    if os.environ.get("UPDATE_GOLDEN"):
        golden.write_text(rendered, encoding="utf-8")
    assert rendered == golden.read_text(encoding="utf-8")


@pytest.mark.parametrize("code", [None, tar_gz(main=b"print()")], ids=["no code", "code"])
@pytest.mark.parametrize("nodes", [1, 2, 64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_render_passes_the_strict_validator(variant, nodes, code):
    job, profile = VARIANTS[variant]
    plan = plan_of(with_nodes(job, nodes), profile, code=code)
    kinds = []
    for body in yaml.safe_load_all(jobs.rendered(plan).text):
        validate(body)
        kinds.append(body["kind"])
    config = ["ConfigMap"] * ((variant != "run") + bool(code))
    owner = ["JobSet"] if variant == "jobset" else ["Job", "Service"]
    assert kinds == [*owner, *config, *(["Secret"] if variant != "run" else [])]


def validate(body: dict) -> None:
    """Strictly, by Kubernetes' own schemas or the kind's CRD; the pods of a JobSet by both."""
    if "." not in body["apiVersion"].partition("/")[0]:
        kubernetes_validate.validate(body, API_VERSION, strict=True)
        return
    if body["kind"] == "JobSet":
        template = body["spec"]["replicatedJobs"][0]["template"]
        kubernetes_validate.validate({"apiVersion": "batch/v1", "kind": "Job", **template}, API_VERSION, strict=True)
    if not body["apiVersion"].startswith(("rbac.", "networking.")):
        crds.validate(body)
    else:
        kubernetes_validate.validate(body, API_VERSION, strict=True)


K8S = Path(__file__).parents[2] / "k8s"
ADMIN = sorted(path.relative_to(K8S).as_posix() for path in K8S.rglob("*.yaml"))


@pytest.mark.parametrize("name", ADMIN)
def test_what_an_administrator_applies_is_valid_and_explained(name):
    assert f"| `{name}` |" in (K8S / "README.md").read_text(encoding="utf-8")
    bodies = list(yaml.safe_load_all((K8S / name).read_text(encoding="utf-8")))
    if not name.endswith("kustomization.yaml"):
        for body in bodies:
            validate(body)
        return
    assert len(bodies) == 1 and bodies[0].keys() <= {"apiVersion", "kind", "namespace", "resources"}
    assert bodies[0]["apiVersion"] == "kustomize.config.k8s.io/v1beta1"
    here = {path.name for path in (K8S / name).parent.glob("*.yaml")} - {"kustomization.yaml"}
    assert sorted(bodies[0]["resources"]) == sorted(here)


def test_the_network_policy_is_for_what_launch_makes():
    policy = yaml.safe_load((K8S / "network.yaml").read_text())["spec"]
    template = run_objects(plan_of(RUN_JOB))[0]["spec"]["template"]
    wanted = policy["podSelector"]["matchLabels"].items()
    assert wanted and wanted <= template["metadata"]["labels"].items()


def test_validator_would_see_a_misspelt_field():
    job = run_objects(plan_of(RUN_JOB))[0]
    job["spec"]["template"]["spec"]["containers"][0]["comand"] = ["true"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, API_VERSION, strict=True)


def test_crd_check_would_see_a_misspelt_field():
    job_set = run_objects(plan_of(RUN_JOB, JOB_SET))[0]
    crds.validate(job_set)
    for part in (job_set["spec"]["failurePolicy"], job_set["spec"]["replicatedJobs"][0]["template"]["spec"]):
        part["maxRestart"] = 3
        with pytest.raises(jsonschema.ValidationError, match="maxRestart"):
            crds.validate(job_set)
        del part["maxRestart"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_1000_nodes_take_as_many_lines_as_2(variant):
    job, profile = VARIANTS[variant]
    few, many = (jobs.rendered(plan_of(with_nodes(job, nodes), profile)).text.splitlines() for nodes in (2, 1000))
    assert len(few) == len(many)
    assert {old.strip() for old, new in zip(few, many, strict=True) if old != new} == {
        "completions: 2", "parallelism: 2", "value: '2'"}


def test_text_and_objects_are_the_same():
    plan = plan_of(TRAIN_JOB, PROFILE, code=tar_gz(main=b"print()"))
    assert list(yaml.safe_load_all(jobs.rendered(plan).text)) == run_objects(plan)
    assert jobs.rendered(plan).text == jobs.rendered(plan).text


@pytest.mark.parametrize(("variant", "kind", "version"), [
    ("train", "Job", "batch/v1"), ("jobset", "JobSet", "jobset.x-k8s.io/v1alpha2")])
def test_everything_has_the_run_id_as_name_and_the_job_as_owner(variant, kind, version):
    first, *others = run_objects(plan_of(*VARIANTS[variant], code=tar_gz(main=b"print()")))
    for body in (first, *others):
        assert body["metadata"]["name"].removesuffix("-code-0") == "demo-0123abcd"
        assert body["metadata"]["namespace"] == "research"
        assert body["metadata"]["labels"]["launch/run-id"] == "demo-0123abcd"
    owner = {"apiVersion": version, "kind": kind, "name": "demo-0123abcd", "uid": UID_PLACEHOLDER}
    assert all(body["metadata"]["ownerReferences"] == [owner] for body in others)
    assert (first["kind"], first["metadata"]["annotations"]["launch/name"]) == (kind, "internlm2-7b-guanaco")
    assert first["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "team-queue"
    assert "suspend" not in first["spec"]


def test_secrets_are_names_only():
    plan = plan_of(TRAIN_JOB, PROFILE)
    assert objects_of(plan)["Secret"]["stringData"] == dict.fromkeys(("HF_TOKEN", "WANDB_API_KEY"), SECRET_PLACEHOLDER)
    assert env_of(plan)["HF_TOKEN"] == {
        "name": "HF_TOKEN", "valueFrom": {"secretKeyRef": {"name": "demo-0123abcd", "key": "HF_TOKEN"}}}


def test_pods_find_node_0_by_name():
    env = env_of(plan_of(RUN_JOB))
    objects = objects_of(plan_of(RUN_JOB))
    template = objects["Job"]["spec"]["template"]["spec"]
    assert env["MASTER_ADDR"]["value"] == f"{objects['Job']['metadata']['name']}-0.{template['subdomain']}"
    assert objects["Service"]["metadata"]["name"] == template["subdomain"]
    assert "job-completion-index" in env["NODE_RANK"]["valueFrom"]["fieldRef"]["fieldPath"]


def test_pods_of_a_job_set_find_node_0_by_the_name_that_it_makes():
    job_set = run_objects(plan_of(RUN_JOB, JOB_SET))[0]
    job = job_set["spec"]["replicatedJobs"][0]
    pod = job["template"]["spec"]["template"]["spec"]
    env = {item["name"]: item.get("value") for item in pod["containers"][0]["env"]}
    assert env["MASTER_ADDR"] == f"{RUN_ID}-{job['name']}-0-0.{job_set['spec']['network']['subdomain']}"
    assert pod["subdomain"] == job_set["spec"]["network"]["subdomain"]
    assert pod == run_objects(plan_of(RUN_JOB))[0]["spec"]["template"]["spec"] | {"containers": pod["containers"]}


def test_restarts_are_a_budget_for_failures_only():
    job = run_objects(plan_of(TRAIN_JOB, PROFILE))[0]["spec"]
    assert (job["backoffLimitPerIndex"], job["maxFailedIndexes"]) == (3, 0)
    rules = [(rule["action"], rule.get("onExitCodes", {}).get("values")) for rule in job["podFailurePolicy"]["rules"]]
    assert rules == [("FailJob", [78]), ("Ignore", [75]), ("Ignore", None)]
    command = run_objects(plan_of(RUN_JOB))[0]["spec"]["podFailurePolicy"]["rules"]
    assert command == [job["podFailurePolicy"]["rules"][0], job["podFailurePolicy"]["rules"][2]]
    job_set = run_objects(plan_of(TRAIN_JOB, {**PROFILE, **JOB_SET}))[0]["spec"]
    child = job_set["replicatedJobs"][0]["template"]["spec"]
    assert (child["backoffLimit"], job_set["failurePolicy"]["maxRestarts"]) == (0, 3)
    assert child["podFailurePolicy"] == job["podFailurePolicy"]
    ends = {rule["onJobFailureReasons"][0]: rule["action"] for rule in job_set["failurePolicy"]["rules"]}
    assert ends == {"PodFailurePolicy": "FailJobSet", "DeadlineExceeded": "FailJobSet"}


@pytest.mark.parametrize(("gpus", "how"), [(8, "required"), (0, "preferred")])
def test_each_node_of_a_run_has_a_machine_of_its_own(gpus, how):
    plan = plan_of({**RUN_JOB, "resources": {"nodes": 2, "gpus_per_node": gpus}})
    rules = objects_of(plan)["Job"]["spec"]["template"]["spec"]["affinity"]["podAntiAffinity"]
    assert list(rules) == [f"{how}DuringSchedulingIgnoredDuringExecution"]
    term = rules[f"{how}DuringSchedulingIgnoredDuringExecution"][0]
    assert term.get("podAffinityTerm", term)["labelSelector"] == {"matchLabels": {"launch/run-id": RUN_ID}}


def test_a_mount_on_our_own_path_takes_its_place():
    mounts = container_of(plan_of(TRAIN_JOB, PROFILE))["volumeMounts"]
    paths = [mount["mountPath"] for mount in mounts]
    assert sorted(paths) == ["/data", "/dev/shm", "/etc/launch", "/scratch", "/tmp", "/workspace"]
    assert next(mount for mount in mounts if mount["mountPath"] == "/workspace")["name"].startswith("mount-")


def code_in(plan: Plan) -> bytes:
    """The archive as the pods see it: the files of the mounted ConfigMaps in the order of their names."""
    bodies = run_objects(plan)
    maps = {body["metadata"]["name"]: body for body in bodies if body["kind"] == "ConfigMap"}
    pod = bodies[0]["spec"]["template"]["spec"]
    config = next(volume for volume in pod["volumes"] if volume["name"] == "config")
    seen = [maps[source["configMap"]["name"]].get("binaryData", {}) for source in config["projected"]["sources"]]
    parts = {name: base64.b64decode(part) for files in seen for name, part in files.items()}
    assert all(len(part) <= 1_000_000 for part in parts.values())
    assert all(name.startswith("code.tar.gz.") and len(name) == len("code.tar.gz.0") for name in parts)
    return b"".join(parts[name] for name in sorted(parts))


def test_code_larger_than_a_config_map_is_cut_into_several():
    archive = tar_gz(weights=bytes(8_300_000))
    plan = plan_of(RUN_JOB, code=archive)
    assert code_in(plan) == archive
    names = [body["metadata"]["name"] for body in run_objects(plan) if body["kind"] == "ConfigMap"]
    assert names == [f"{RUN_ID}-code-{number}" for number in range(9)]


def test_run_id_that_starts_with_a_digit_is_refused():
    with pytest.raises(SpecError, match="--run-id: must start with a letter on Kubernetes, not '7b'"):
        jobs.rendered(plan_of(RUN_JOB, run_id="7b"))


def test_longest_name_leaves_room_for_the_index():
    plan = plan_of(with_nodes(RUN_JOB, 100_000), run_id="a" * 53)
    job = objects_of(plan)["Job"]
    assert len(f"{job['metadata']['name']}-{job['spec']['completions'] - 1}") <= 63


def test_a_name_that_a_job_set_makes_too_long_is_refused():
    job = with_nodes(RUN_JOB, 1000)
    assert len(f"{'a' * 49}-n-0-999-abcde") == 63
    run_objects(plan_of(job, JOB_SET, run_id="a" * 49))
    with pytest.raises(SpecError, match="at most 49 characters for a JobSet of 1000 nodes"):
        run_objects(plan_of(job, JOB_SET, run_id="a" * 50))


def expanded(text: str) -> str:
    """What the kubelet makes of a value: `$$` is a dollar, `$(NAME)` a variable, any other dollar itself."""

    def one(found: re.Match[str]) -> str:
        return "<variable>" if found[0].startswith("$(") else "$"

    return re.sub(r"\$\$|\$\([^)]*\)|\$", one, text)


@given(st.text("$()ab ", max_size=12))
def test_values_arrive_as_written(text):
    assert expanded(literal(text)) == text


@pytest.mark.parametrize("value", ["a\x85b", "\u2028", "x\u2029 y", "two\nlines\x85"])
def test_a_line_end_of_unicode_is_read_back_from_the_manifest(value):
    """PyYAML reads one that is not escaped as a blank."""
    rendered = yaml.safe_load_all(jobs.rendered(plan_of({**RUN_JOB, "env": {"UGLY": value}})).text)
    job = next(one for one in rendered if one["kind"] == "Job")
    environ = {one["name"]: one.get("value") for one in job["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert environ["UGLY"] == value


def test_plain_dollars_stay_readable():
    assert literal("echo $HOME") == "echo $HOME"


SIZES = [(2**39, "512Gi"), (2**40, "1Ti"), (1536 * 2**20, "1536Mi"), (10**9, "1000000000")]


@pytest.mark.parametrize(("size", "text"), SIZES)
def test_quantity_is_exact(size, text):
    assert quantity(size) == text
