"""What launch sends to Kubernetes: read by people as golden files, checked by the API's own schemas."""

import base64
import io
import re
import tarfile
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from launcher.errors import SpecError
from launcher.plan import Plan, plan_run
from launcher.render.k8s import SECRET_PLACEHOLDER, UID_PLACEHOLDER, k8s_objects, render_k8s
from launcher.render.pod import literal, quantity
from launcher.spec import ClusterProfile, JobSpec

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
    spec, place = JobSpec.model_validate(job), ClusterProfile.model_validate(profile or {"backend": "kubernetes"})
    return plan_run(spec, place, run_id=run_id, code_archive=code, code_digest="5eed" * 4 if code else None)


def with_nodes(job: dict, nodes: int) -> dict:
    """The same job on another number of nodes."""
    return {**job, "resources": {**job["resources"], "nodes": nodes}}


def objects_of(plan: Plan) -> dict[str, dict]:
    """What a render says, by kind."""
    return {body["kind"]: body for body in yaml.safe_load_all(render_k8s(plan))}


def container_of(plan: Plan) -> dict:
    """The container of the pod template."""
    return objects_of(plan)["Job"]["spec"]["template"]["spec"]["containers"][0]


def env_of(plan: Plan) -> dict[str, dict]:
    """Its environment by name; no name may come twice."""
    env = container_of(plan)["env"]
    assert len({item["name"] for item in env}) == len(env)
    return {item["name"]: item for item in env}


VARIANTS = {"run": (RUN_JOB, None), "train": (TRAIN_JOB, PROFILE)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_render_is_the_golden_file(variant):
    assert render_k8s(plan_of(*VARIANTS[variant])) == (GOLDEN / f"k8s-{variant}.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize("code", [None, tar_gz(main=b"print()")], ids=["no code", "code"])
@pytest.mark.parametrize("nodes", [1, 2, 64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_render_passes_the_strict_validator(variant, nodes, code):
    job, profile = VARIANTS[variant]
    plan = plan_of(with_nodes(job, nodes), profile, code=code)
    kinds = []
    for body in yaml.safe_load_all(render_k8s(plan)):
        kubernetes_validate.validate(body, API_VERSION, strict=True)
        kinds.append(body["kind"])
    config = ["ConfigMap"] if variant == "train" or code else []
    assert kinds == ["Job", "Service", *config, *(["Secret"] if variant == "train" else [])]


ADMIN = sorted(path for path in (Path(__file__).parents[2] / "k8s").glob("*.yaml") if path.stem != "kustomization")


@pytest.mark.parametrize("path", ADMIN, ids=lambda path: path.name)
def test_what_an_administrator_applies_is_valid_and_listed(path):
    for body in yaml.safe_load_all(path.read_text(encoding="utf-8")):
        kubernetes_validate.validate(body, API_VERSION, strict=True)
    kustomization = yaml.safe_load((path.parent / "kustomization.yaml").read_text(encoding="utf-8"))
    assert path.name in kustomization["resources"]
    assert f"`{path.name}`" in (path.parent / "README.md").read_text(encoding="utf-8")


def test_validator_would_see_a_misspelt_field():
    job = k8s_objects(plan_of(RUN_JOB))[0]
    job["spec"]["template"]["spec"]["containers"][0]["comand"] = ["true"]
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(job, API_VERSION, strict=True)


@pytest.mark.parametrize("variant", VARIANTS)
def test_64_nodes_take_as_many_lines_as_2(variant):
    job, profile = VARIANTS[variant]
    few, many = (render_k8s(plan_of(with_nodes(job, nodes), profile)).splitlines() for nodes in (2, 64))
    assert len(few) == len(many)
    assert {old for old, new in zip(few, many, strict=True) if old != new} == {
        "  completions: 2", "  parallelism: 2", "          value: '2'"}


def test_text_and_objects_are_the_same():
    plan = plan_of(TRAIN_JOB, PROFILE, code=tar_gz(main=b"print()"))
    assert list(yaml.safe_load_all(render_k8s(plan))) == k8s_objects(plan)
    assert render_k8s(plan) == render_k8s(plan)


def test_everything_has_the_run_id_as_name_and_the_job_as_owner():
    objects = objects_of(plan_of(TRAIN_JOB, PROFILE))
    for kind, body in objects.items():
        assert (body["metadata"]["name"], body["metadata"]["namespace"]) == ("demo-0123abcd", "research")
        assert body["metadata"]["labels"]["launch/run-id"] == "demo-0123abcd"
        if kind != "Job":
            owner = {"apiVersion": "batch/v1", "kind": "Job", "name": "demo-0123abcd", "uid": UID_PLACEHOLDER}
            assert body["metadata"]["ownerReferences"] == [owner]
    assert objects["Job"]["metadata"]["annotations"]["launch/name"] == "internlm2-7b-guanaco"


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


def test_a_mount_on_our_own_path_takes_its_place():
    mounts = container_of(plan_of(TRAIN_JOB, PROFILE))["volumeMounts"]
    paths = [mount["mountPath"] for mount in mounts]
    assert sorted(paths) == ["/data", "/dev/shm", "/etc/launch", "/scratch", "/tmp", "/workspace"]
    assert next(mount for mount in mounts if mount["mountPath"] == "/workspace")["name"].startswith("mount-")


def test_code_of_a_training_job_is_unpacked_by_the_entrypoint():
    archive = tar_gz(main=b"print()")
    plan = plan_of(TRAIN_JOB, PROFILE, code=archive)
    assert base64.b64decode(objects_of(plan)["ConfigMap"]["binaryData"]["code.tar.gz"]) == archive
    assert container_of(plan)["command"] == ["python3", "-m", "trainer.entrypoint"]
    assert env_of(plan)["LAUNCH_CODE"]["value"] == "/etc/launch/code.tar.gz"
    assert env_of(plan)["PYTHONPATH"]["value"] == "/workspace"


def test_code_of_any_other_command_is_unpacked_before_it():
    container = container_of(plan_of(RUN_JOB, code=tar_gz(main=b"print()")))
    assert container["command"] == ["sh", "-c", 'tar -xzf "$LAUNCH_CODE" && exec "$@"', "sh"]
    assert container["args"][:2] == ["bash", "-c"]


def test_too_much_code_is_refused_with_its_size_and_the_largest_files():
    with pytest.raises(SpecError) as caught:
        render_k8s(plan_of(RUN_JOB, code=tar_gz(small=b"x", weights=bytes(900_000))))
    assert re.search(r"got 1,2\d\d,\d{3} bytes packed, allowed on Kubernetes: 1,000,000", caught.value.message)
    assert caught.value.message.splitlines()[1].endswith("0.86 MiB  weights")
    assert ".launchignore" in caught.value.hint


def test_run_id_that_starts_with_a_digit_is_refused():
    with pytest.raises(SpecError, match="--run-id: got '7b', allowed on Kubernetes: one that starts with a letter"):
        render_k8s(plan_of(RUN_JOB, run_id="7b"))


def test_longest_name_leaves_room_for_the_index():
    plan = plan_of(with_nodes(RUN_JOB, 100_000), run_id="a" * 53)
    job = objects_of(plan)["Job"]
    assert len(f"{job['metadata']['name']}-{job['spec']['completions'] - 1}") <= 63


def expanded(text: str) -> str:
    """What the kubelet makes of a value: `$$` is a dollar, `$(NAME)` a variable, any other dollar itself."""

    def one(found: re.Match[str]) -> str:
        return "<variable>" if found[0].startswith("$(") else "$"

    return re.sub(r"\$\$|\$\([^)]*\)|\$", one, text)


@given(st.text("$()ab ", max_size=12))
def test_values_arrive_as_written(text):
    assert expanded(literal(text)) == text


def test_plain_dollars_stay_readable():
    assert literal("echo $HOME") == "echo $HOME"


SIZES = [(2**39, "512Gi"), (2**40, "1Ti"), (1536 * 2**20, "1536Mi"), (10**9, "1000000000")]


@pytest.mark.parametrize(("size", "text"), SIZES)
def test_quantity_is_exact(size, text):
    assert quantity(size) == text
