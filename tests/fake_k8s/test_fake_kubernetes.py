"""The fake cluster behaves as the real one was seen to, through the client that the launcher uses."""

import itertools
import json
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import urllib3
from kubernetes import config, dynamic
from kubernetes.dynamic import exceptions

from tests.fakes.kubernetes import FakeCluster

PATIENCE_S = 5
NAMESPACE = "default"
RESTRICTED = {
    "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
}


class User:
    """Somebody with a kubeconfig."""

    def __init__(self, cluster: FakeCluster) -> None:
        self.cluster = cluster
        api_client = config.new_client_from_config(str(cluster.kubeconfig))
        self.http = api_client.rest_client.pool_manager
        self.client = dynamic.DynamicClient(api_client, cache_file=str(cluster.root / "discovery.json"))

    def kind(self, kind: str) -> Any:
        return self.client.resources.get(api_version="batch/v1" if kind == "Job" else "v1", kind=kind)

    def create(self, body: dict[str, Any], **options: Any) -> dict[str, Any]:
        return self.kind(body["kind"]).create(body, namespace=NAMESPACE, **options).to_dict()

    def get(self, kind: str, name: str) -> dict[str, Any]:
        return self.kind(kind).get(name=name, namespace=NAMESPACE).to_dict()

    def items(self, kind: str, **options: Any) -> list[dict[str, Any]]:
        return self.kind(kind).get(namespace=NAMESPACE, **options).to_dict()["items"]

    def pods(self, job: str) -> list[dict[str, Any]]:
        return self.items("Pod", label_selector=f"batch.kubernetes.io/job-name={job}")

    def conditions(self, job: str) -> dict[str, str]:
        found = self.get("Job", job)["status"].get("conditions", [])
        return {item["type"]: item["reason"] for item in found if item["status"] == "True"}

    def reasons(self, name: str) -> list[str]:
        return [event["reason"] for event in self.items("Event", field_selector=f"involvedObject.name={name}")]

    def log(self, pod: str, options: str = "") -> urllib3.BaseHTTPResponse:
        url = f"{self.cluster.url}/api/v1/namespaces/{NAMESPACE}/pods/{pod}/log?{options}"
        return self.http.request("GET", url, preload_content=False, retries=False)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[FakeCluster]:
    with FakeCluster(tmp_path / "cluster") as cluster:
        cluster.backoff_s = 0.1
        yield cluster


@pytest.fixture
def user(cluster: FakeCluster) -> User:
    return User(cluster)


def wait_for(check: Callable[[], Any], what: str = "") -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (found := check()):
        assert time.monotonic() < deadline, what or check
        time.sleep(0.02)
    return found


def job(name: str, script: str, pods: int = 1, container: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    trainer = {
        "name": "trainer",
        "image": "trainer:1",
        "command": ["bash", "-c"],
        "args": [script],
        **(container or {}),
    }
    pod = {"restartPolicy": "Never", "subdomain": name, "terminationGracePeriodSeconds": 1, "containers": [trainer]}
    pod.update(spec.pop("pod", {}))
    fixed = {"completions": pods, "parallelism": pods, "completionMode": "Indexed", "template": {"spec": pod}}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": name}, "spec": {**fixed, **spec}}


def running(user: User, name: str, count: int = 1) -> list[str]:
    """The names of a job's pods once so many run."""

    def names() -> list[str]:
        return [pod["metadata"]["name"] for pod in user.pods(name) if pod["status"]["phase"] == "Running"]

    wait_for(lambda: len(names()) == count, f"{count} pods of {name} run")
    return names()


def owned_by(owner: dict[str, Any], kind: str, **fields: Any) -> dict[str, Any]:
    meta = owner["metadata"]
    reference = {"apiVersion": "batch/v1", "kind": "Job", "name": meta["name"], "uid": meta["uid"]}
    return {
        "apiVersion": "v1",
        "kind": kind,
        "metadata": {"name": meta["name"], "ownerReferences": [reference]},
        **fields,
    }


def test_indexed_job_prints_and_completes(user: User) -> None:
    created = user.create(job("two", "echo rank $JOB_COMPLETION_INDEX on $(hostname); exit 0", pods=2))
    wait_for(lambda: "Complete" in user.conditions("two"))
    assert user.get("Job", "two")["status"]["completedIndexes"] == "0,1"
    for index, pod in enumerate(sorted(user.pods("two"), key=lambda pod: pod["metadata"]["name"])):
        assert pod["metadata"]["name"].startswith(f"two-{index}-")
        assert pod["metadata"]["ownerReferences"][0]["uid"] == created["metadata"]["uid"]
        assert user.log(pod["metadata"]["name"]).data == f"rank {index} on two-{index}\n".encode()


def test_container_sees_its_files_variables_and_names(user: User, cluster: FakeCluster) -> None:
    cluster.create("persistentvolumeclaims", {"metadata": {"name": "disk"}}, NAMESPACE)
    script = (
        "until getent hosts files-0.files >/dev/null; do sleep 0.05; done; cat /etc/launch/a.txt;"
        "echo $TOKEN $GREETING; id -u; pwd; touch /x 2>/dev/null || echo read-only; echo out > /out/file;"
        "echo why > /dev/termination-log; exit 3"
    )
    volumes = [
        {"name": "config", "configMap": {"name": "files", "items": [{"key": "a", "path": "a.txt"}]}},
        {"name": "out", "persistentVolumeClaim": {"claimName": "disk"}},
    ]
    container = {
        "workingDir": "/workspace",
        "securityContext": {"readOnlyRootFilesystem": True, "runAsUser": 1234},
        "volumeMounts": [{"name": "config", "mountPath": "/etc/launch"}, {"name": "out", "mountPath": "/out"}],
        "env": [
            {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "files", "key": "token"}}},
            {"name": "GREETING", "value": "hi-$(TOKEN)-$$(TOKEN)"},
        ],
    }
    owner = user.create(job("files", script, container=container, pod={"volumes": volumes}, backoffLimit=0))
    user.create(owned_by(owner, "ConfigMap", binaryData={"a": "Ynl0ZXMK"}))
    user.create(owned_by(owner, "Secret", stringData={"token": "s3cret"}))
    user.create(owned_by(owner, "Service", spec={"clusterIP": "None"}))
    wait_for(lambda: "Failed" in user.conditions("files"))
    (pod,) = user.pods("files")
    lines = user.log(pod["metadata"]["name"]).data.decode().split("\n")
    assert lines == ["bytes", "s3cret hi-s3cret-$(TOKEN)", "1234", "/workspace", "read-only", ""]
    ended = pod["status"]["containerStatuses"][0]["state"]["terminated"]
    assert (ended["exitCode"], ended["message"]) == (3, "why\n")
    assert (cluster.root / "volumes/disk/file").read_text() == "out\n"
    assert not Path("/etc/launch").exists()


@pytest.mark.parametrize("name", ["plain", "with a space, a comma: and a colon"])
def test_a_kept_folder_is_seen_below_the_pods_own_mounts(user: User, cluster: FakeCluster, tmp_path: Path,
                                                         name: str) -> None:
    """As this repository must be, wherever it was cloned; what a pod writes there stays in the pod."""
    kept, shared = tmp_path / name, tmp_path / name / "shared"
    shared.mkdir(parents=True)
    (kept / "file").write_text("kept\n")
    kept.chmod(0o700)
    cluster.kept_paths.append(kept)
    cluster.shared_paths.append(shared)
    over = tmp_path.parent
    container = {"volumeMounts": [{"name": "over", "mountPath": str(over)}], "securityContext": {"runAsUser": 1234}}
    shared.chmod(0o777)
    script = f"cd '{kept}'; cat file; echo in >shared/out; ls {over}"
    user.create(job("kept", script, container=container, pod={"volumes": [{"name": "over", "emptyDir": {}}]}))
    wait_for(lambda: "Complete" in user.conditions("kept"))
    (pod,) = user.pods("kept")
    assert user.log(pod["metadata"]["name"]).data.decode().splitlines() == ["kept", tmp_path.name]
    assert ((shared / "out").read_text(), kept.stat().st_mode & 0o777) == ("in\n", 0o700)


def test_failing_index_is_replaced_until_its_limit(user: User) -> None:
    script = "[ $JOB_COMPLETION_INDEX = 0 ] && exit 7; sleep 60"
    user.create(job("flaky", script, pods=2, backoffLimitPerIndex=1, maxFailedIndexes=0))
    wait_for(lambda: "Failed" in user.conditions("flaky"))
    assert user.conditions("flaky")["FailureTarget"] == "MaxFailedIndexesExceeded"
    status = user.get("Job", "flaky")["status"]
    assert (status["failedIndexes"], status["failed"]) == ("0", 3)
    left = wait_for(lambda: (pods := user.pods("flaky")) and len(pods) == 2 and pods)
    assert {pod["status"]["containerStatuses"][0]["state"]["terminated"]["exitCode"] for pod in left} == {7}


def test_failure_policy_tells_fatal_from_ignored(user: User, tmp_path: Path, cluster: FakeCluster) -> None:
    cluster.shared_paths = [tmp_path]
    rules = [
        {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [78]}},
        {"action": "Ignore", "onExitCodes": {"operator": "In", "values": [75]}},
    ]
    script = f"[ -e {tmp_path}/again ] && exit 78; touch {tmp_path}/again; exit 75"
    user.create(job("policy", script, backoffLimit=0, podFailurePolicy={"rules": rules}))
    wait_for(lambda: "Failed" in user.conditions("policy"))
    assert user.conditions("policy")["Failed"] == "PodFailurePolicy"
    assert user.get("Job", "policy")["status"]["failed"] == 1


def test_delete_orphans_by_default(user: User) -> None:
    owner = user.create(job("orphan", "sleep 60"))
    user.create(owned_by(owner, "ConfigMap"))
    running(user, "orphan")
    user.kind("Job").delete(name="orphan", namespace=NAMESPACE)
    with pytest.raises(exceptions.NotFoundError):
        user.get("Job", "orphan")
    (pod,) = user.pods("orphan")
    assert pod["status"]["phase"] == "Running"
    assert "ownerReferences" not in pod["metadata"]
    assert "ownerReferences" not in user.get("ConfigMap", "orphan")["metadata"]


@pytest.mark.parametrize("policy", ["Background", "Foreground"])
def test_delete_cascades_and_only_the_main_process_is_told(user: User, policy: str) -> None:
    script = "trap 'echo saving; sleep 0.3; echo saved; exit 75' TERM; echo up; while true; do sleep 0.05; done"
    owner = user.create(job("cascade", script))
    user.create(owned_by(owner, "ConfigMap"))
    (pod,) = running(user, "cascade")
    stream = user.log(pod, "follow=true").stream()
    assert next(stream) == b"up\n"
    user.kind("Job").delete(name="cascade", namespace=NAMESPACE, propagation_policy=policy)
    assert b"".join(stream) == b"saving\nsaved\n"
    wait_for(lambda: not user.pods("cascade") and not user.items("ConfigMap") and not user.items("Job"))
    assert user.log(pod).status == 404


def test_shell_without_trap_ignores_term_until_killed(user: User) -> None:
    user.create(job("deaf", "sleep 60; echo late", pod={"terminationGracePeriodSeconds": 1}))
    (pod,) = running(user, "deaf")
    user.kind("Pod").delete(name=pod, namespace=NAMESPACE)
    time.sleep(0.5)
    assert user.get("Pod", pod)["status"]["phase"] == "Running"
    wait_for(lambda: pod not in [item["metadata"]["name"] for item in user.pods("deaf")])
    assert user.get("Job", "deaf")["status"]["failed"] == 1


def test_stale_owner_is_collected_at_once(user: User) -> None:
    user.create(owned_by({"metadata": {"name": "stale", "uid": "gone"}}, "ConfigMap"))
    wait_for(lambda: not user.items("ConfigMap"))


def test_follow_cut_in_the_middle_resumes_by_time(user: User, cluster: FakeCluster) -> None:
    cluster.split_utf8 = True
    user.create(job("chatty", "for i in $(seq 40); do echo é$i; sleep 0.02; done; printf end"))
    (pod,) = running(user, "chatty")
    seen: dict[str, str] = {}
    cut = user.log(pod, "follow=true&timestamps=true")
    with pytest.raises(urllib3.exceptions.ProtocolError):  # noqa: PT012 - the stream must break while it is read
        data = b""
        for chunk in cut.stream():
            data += chunk
            if data.count(b"\n") == 5:
                cluster.drop_connections()
    for line in data.decode(errors="ignore").split("\n")[:-1]:
        assert line[29:31] == "Z "
        seen[line[:30]] = line[31:]
    since = f"{max(seen)[:19]}Z"
    again = user.log(pod, f"follow=true&timestamps=true&sinceTime={since}").data.decode()
    repeats = [line for line in again.splitlines() if line[:30] in seen]
    seen.update((line[:30], line[31:]) for line in again.splitlines())
    assert repeats
    assert [seen[stamp] for stamp in sorted(seen)] == [*(f"é{number}" for number in range(1, 41)), "end"]


def test_log_options_and_refusals(user: User, cluster: FakeCluster) -> None:
    user.create(job("lines", "seq 5; sleep 60"))
    (pod,) = running(user, "lines")
    wait_for(lambda: user.log(pod).data == b"1\n2\n3\n4\n5\n")
    assert user.log(pod, "tailLines=2").data == b"4\n5\n"
    assert user.log(pod, "limitBytes=3").data == b"1\n2"
    assert user.log(pod, "sinceTime=2100-01-01T00:00:00Z").data == b""
    assert user.log(pod, "sinceTime=2100-01-01T00:00:00Z&sinceSeconds=1").status == 422
    assert b"previous terminated container" in user.log(pod, "previous=true").data
    cluster.rotate_logs(NAMESPACE, pod)
    assert user.log(pod).data == b""
    user.create(job("stuck", "true", container={"image": "missing-image"}))
    waiting = wait_for(lambda: user.pods("stuck"))[0]["metadata"]["name"]
    refusal = user.log(waiting)
    assert refusal.status == 400
    assert b"is waiting to start" in refusal.data


def test_log_of_a_pod_that_is_being_removed_is_an_error_text(user: User, cluster: FakeCluster) -> None:
    cluster.log_leftover_s = 60
    user.create(job("leaves", "echo up; sleep 60"))
    (pod,) = running(user, "leaves")
    follow = user.log(pod, "follow=true").stream()
    assert next(follow) == b"up\n"
    user.kind("Pod").delete(name=pod, namespace=NAMESPACE, grace_period_seconds=0)
    assert list(follow) == []
    wait_for(lambda: b"failed to try resolving symlinks" in (answer := user.log(pod)).data and answer.status == 200)


def test_restricted_namespace_refuses_pods_but_not_jobs(user: User, cluster: FakeCluster) -> None:
    cluster.enforce_restricted(NAMESPACE)
    user.create(job("refused", "true"))
    wait_for(lambda: "FailedCreate" in user.reasons("refused"))
    (event,) = [item for item in user.items("Event") if item["reason"] == "FailedCreate"][:1]
    assert 'violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false' in event["message"]
    context = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    allowed = job("allowed", "id -u", container={"securityContext": context}, pod=RESTRICTED)
    spec = dict(allowed["spec"]["template"]["spec"])
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "probe"}, "spec": spec}
    user.create(pod, dry_run="All")
    assert not user.pods("probe")
    spec.pop("securityContext")
    with pytest.raises(exceptions.ForbiddenError, match="runAsNonRoot"):
        user.create(pod, dry_run="All")
    user.create(allowed)
    wait_for(lambda: "Complete" in user.conditions("allowed"))


def test_quota_lets_the_first_pods_in(user: User, cluster: FakeCluster) -> None:
    cluster.set_quota(NAMESPACE, {"requests.nvidia.com/gpu": "4"})
    limits = {"resources": {"limits": {"nvidia.com/gpu": 4}}}
    user.create(job("half", "sleep 60", pods=2, container=limits))
    wait_for(lambda: "FailedCreate" in user.reasons("half"))
    assert len(user.pods("half")) == 1
    wanted = "exceeded quota: q, requested: requests.nvidia.com/gpu=4, used: requests.nvidia.com/gpu=4, limited"
    assert any(wanted in event["message"] for event in user.items("Event"))


def test_too_many_gpus_stay_pending(user: User, cluster: FakeCluster) -> None:
    limits = {"resources": {"limits": {"nvidia.com/gpu": "16"}}}
    user.create(job("greedy", "true", container=limits))
    pod = wait_for(lambda: [pod for pod in user.pods("greedy") if pod["status"].get("conditions")])[0]
    condition = pod["status"]["conditions"][0]
    assert (pod["status"]["phase"], condition["reason"]) == ("Pending", "Unschedulable")
    assert condition["message"].startswith("0/3 nodes are available: 3 Insufficient nvidia.com/gpu. ")
    assert condition["message"].endswith("3 Preemption is not helpful for scheduling.")
    cluster.set_gpus("node-1", 16)
    wait_for(lambda: "Complete" in user.conditions("greedy"))


@pytest.mark.parametrize(
    ("container", "volumes", "reason", "event"),
    [
        ({"image": "missing-image"}, [], "ImagePullBackOff", "BackOff"),
        ({"image": "Bad Image"}, [], "InvalidImageName", "InspectFailed"),
        ({"envFrom": [{"secretRef": {"name": "no"}}]}, [], "CreateContainerConfigError", "Failed"),
        ({}, [{"name": "d", "secret": {"secretName": "no"}}], "ContainerCreating", "FailedMount"),
    ],
)
def test_pods_that_cannot_start_say_why(user: User, container: Any, volumes: Any, reason: str, event: str) -> None:
    user.create(job("waits", "true", container=container, pod={"volumes": volumes}))
    pod = wait_for(lambda: user.pods("waits"))[0]["metadata"]["name"]

    def waiting() -> str | None:
        statuses = user.get("Pod", pod)["status"].get("containerStatuses") or [{"state": {}}]
        return statuses[0]["state"].get("waiting", {}).get("reason")

    wait_for(lambda: waiting() == reason and event in user.reasons(pod))


def test_validation_lists_unknown_fields_and_bad_names(user: User) -> None:
    wrong = job("wrong", "true", backofLimit=1)
    wrong["spec"]["template"]["spec"]["containers"][0]["colour"] = "red"
    with pytest.raises(exceptions.BadRequestError) as caught:
        user.create(wrong, query_params=[("fieldValidation", "Strict")])
    message = json.loads(caught.value.body)["message"]
    assert "strict decoding error: unknown field " in message
    assert 'unknown field "spec.backofLimit"' in message
    assert 'unknown field "spec.template.spec.containers[0].colour"' in message
    with pytest.raises(exceptions.InternalServerError, match="field not declared in schema"):
        user.kind("Job").server_side_apply(wrong, namespace=NAMESPACE, field_manager="launcher")
    assert "backofLimit" not in user.create(wrong, dry_run="All")["spec"]
    for name in ("Upper", "a" * 62):
        with pytest.raises(exceptions.UnprocessibleEntityError):
            user.create(job(name, "true"))
    assert not user.items("Job")


def test_apply_is_idempotent_and_the_template_immutable(user: User) -> None:
    body = job("applied", "sleep 60", suspend=True)
    apply = user.kind("Job").server_side_apply
    first = apply(body, namespace=NAMESPACE, field_manager="launcher").to_dict()
    second = apply(body, namespace=NAMESPACE, field_manager="launcher").to_dict()
    assert first["metadata"]["uid"] == second["metadata"]["uid"]
    assert second["metadata"]["generation"] == 1
    wait_for(lambda: user.conditions("applied") == {"Suspended": "JobSuspended"})
    with pytest.raises(exceptions.ConflictError, match=r"conflict with .*launcher.*: \.spec\.suspend"):
        apply(job("applied", "sleep 60", suspend=False), namespace=NAMESPACE, field_manager="other")
    with pytest.raises(exceptions.UnprocessibleEntityError, match="field is immutable"):
        apply(job("applied", "sleep 61", suspend=True), namespace=NAMESPACE, field_manager="launcher")
    with pytest.raises(exceptions.ConflictError, match="AlreadyExists"):
        user.create(body)
    user.kind("Job").patch({"spec": {"suspend": False}}, name="applied", namespace=NAMESPACE)
    running(user, "applied")


def test_missing_namespace_is_not_found(user: User) -> None:
    with pytest.raises(exceptions.NotFoundError, match='namespaces \\\\"nowhere\\\\" not found'):
        user.kind("Job").create(job("lost", "true"), namespace="nowhere")


def test_lost_pods_are_told_apart(user: User, cluster: FakeCluster) -> None:
    user.create(job("frail", "sleep 60", pods=2, backoffLimitPerIndex=5, maxFailedIndexes=0))
    killed, evicted = sorted(running(user, "frail", 2))
    cluster.kill_pod(NAMESPACE, killed, signal.SIGKILL, oom=True)
    cluster.evict(NAMESPACE, evicted)
    ended = wait_for(lambda: user.get("Pod", killed)["status"]["containerStatuses"][0]["state"].get("terminated"))
    assert (ended["exitCode"], ended["reason"]) == (137, "OOMKilled")
    disrupted = {item["type"]: item["reason"] for item in user.get("Pod", evicted)["status"]["conditions"]}
    assert disrupted["DisruptionTarget"] == "EvictionByEvictionAPI"
    user.kind("Pod").delete(name=evicted, namespace=NAMESPACE, grace_period_seconds=0)
    wait_for(lambda: user.get("Job", "frail")["status"].get("failed") == 2)
    running(user, "frail", 2)


def test_lost_node_freezes_its_pods_until_replaced(user: User, cluster: FakeCluster) -> None:
    user.create(job("away", "echo up; sleep 60", backoffLimitPerIndex=5))
    (old,) = running(user, "away")
    node = user.get("Pod", old)["spec"]["nodeName"]
    cluster.lose_node(node, evict_after_s=0.1)
    assert user.log(old).status == 500
    new = wait_for(lambda: [name for name in running(user, "away", 2) if name != old])[0]
    assert user.get("Pod", new)["spec"]["nodeName"] != node
    assert "deletionTimestamp" in user.get("Pod", old)["metadata"]
    cluster.restore_node(node)
    wait_for(lambda: running(user, "away") == [new])


def test_server_faults(user: User, cluster: FakeCluster) -> None:
    url = f"{cluster.url}/api/v1/namespaces"

    def status() -> int:
        return user.http.request("GET", url, retries=False).status

    cluster.throttle(1)
    assert user.http.request("GET", url, retries=False).headers["Retry-After"] == "1"
    cluster.fail_once(503, "/namespaces$")
    assert [status(), status()] == [503, 200]
    cluster.go_away(0.2)
    with pytest.raises(urllib3.exceptions.ProtocolError):
        status()
    time.sleep(0.25)
    assert status() == 200
    assert cluster.requests[-1] == ("GET", "/api/v1/namespaces", {}, None)


def test_watch_streams_changes(user: User) -> None:
    user.create(job("seen", "true"))
    events = itertools.takewhile(
        lambda event: event["object"]["status"]["phase"] != "Succeeded",
        user.kind("Pod").watch(namespace=NAMESPACE, timeout=5),
    )
    assert "ADDED" in [event["type"] for event in events]


def test_deadline_and_ttl(user: User) -> None:
    user.create(job("slow", "sleep 60", activeDeadlineSeconds=1, ttlSecondsAfterFinished=1))
    running(user, "slow")
    wait_for(lambda: "FailureTarget" in user.conditions("slow"))
    assert user.conditions("slow")["FailureTarget"] == "DeadlineExceeded"
    wait_for(lambda: not user.items("Job"))
    wait_for(lambda: not user.pods("slow"))


def test_versions_that_nobody_remembers_are_gone(user: User, cluster: FakeCluster) -> None:
    old = user.kind("Pod").get(namespace=NAMESPACE).metadata.resourceVersion
    user.create({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "later"}})
    assert user.items("Pod", resource_version=old) == []
    cluster.expire_versions()
    with pytest.raises(exceptions.DynamicApiError) as caught:
        user.items("Pod", resource_version=old)
    assert caught.value.status == 410
    pods = f"{cluster.url}/api/v1/namespaces/{NAMESPACE}/pods"
    watched = user.http.request("GET", f"{pods}?watch=1&resourceVersion={old}")
    assert json.loads(watched.data)["object"]["code"] == 410
    assert user.items("Pod", resource_version="0") == []


def test_a_webhook_refuses_dry_runs_too(user: User, cluster: FakeCluster) -> None:
    cluster.deny("/configmaps$", "no such team")
    for query in ([], [("dryRun", "All")]):
        with pytest.raises(exceptions.BadRequestError, match="denied the request: no such team"):
            user.create({"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "c"}}, query_params=query)


def test_lines_within_a_tick_of_the_clock_have_equal_stamps(user: User, cluster: FakeCluster) -> None:
    cluster.log_tick_ns = 60 * 10**9
    user.create(job("j", "echo same; echo same; echo other"))
    wait_for(lambda: "Complete" in user.conditions("j"))
    lines = user.log(user.pods("j")[0]["metadata"]["name"], "timestamps=true").data.decode().splitlines()
    assert [line[31:] for line in lines] == ["same", "same", "other"]
    assert len({line[:30] for line in lines}) <= 2  # two when the tick falls between
