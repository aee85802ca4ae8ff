"""The Kubernetes back end against the fake API server, over HTTP, with pods that really run."""

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher.backends.kubernetes.backend import KubernetesBackend
from launcher.backends.kubernetes.client import ApiError, Kube
from launcher.backends.kubernetes.objects import SECRET_PLACEHOLDER, UID_PLACEHOLDER, run_objects
from launcher.errors import BackendError
from launcher.job.plan import Plan
from launcher.runs.status import State
from launcher.services.ends import status_of
from tests.fakes.kubernetes import FakeCluster
from tests.jobs import rendered
from tests.k8s_runs import (
    IDLE,
    RUN_ID,
    asking,
    lines_of,
    objects_in,
    plan_of,
    pod_of,
    submit,
    texts,
    wait_for,
    wait_reason,
    wait_state,
)

K8S = Path(__file__).parents[2] / "k8s"
TRAIN = {"model": {"path": "/model"}, "data": {"sources": [{"path": "/data"}]}}


def test_what_is_sent_is_the_render_but_for_two_placeholders(backend, cluster, store):
    plan = plan_of(secrets=["HF_TOKEN"], env={"A": "$(B) $$"})
    submit(backend, plan, {"HF_TOKEN": "s3cr3t"})
    bodies = list(yaml.safe_load_all(rendered(plan).text))
    sent = [body for verb, _, query, body in cluster.requests if verb == "POST"]
    uid = asking(cluster).get("Job", "default", RUN_ID)["metadata"]["uid"]
    text = json.dumps(bodies).replace(UID_PLACEHOLDER, uid).replace(SECRET_PLACEHOLDER, "s3cr3t")
    assert sent == json.loads(text)
    assert json.dumps(bodies).count(UID_PLACEHOLDER) == 2
    assert all(query["fieldValidation"] == "Strict" for verb, _, query, _ in cluster.requests if verb == "POST")


def test_check_leaves_nothing(backend, cluster):
    plan = plan_of(secrets=["HF_TOKEN"])
    backend.check(rendered(plan))
    assert objects_in(cluster) == []
    kinds = [body["kind"] for verb, _, query, body in cluster.requests if verb == "POST" and query["dryRun"] == "All"]
    assert kinds == ["Job", "Service", "Secret", "Pod"]


def refusal(backend: KubernetesBackend, plan: Plan) -> BackendError:
    """What `check` says."""
    with pytest.raises(BackendError) as caught:
        backend.check(rendered(plan))
    return caught.value


def test_missing_namespace_is_named_with_the_command_that_makes_it(backend):
    error = refusal(backend, plan_of(profile={"namespace": "nowhere"}))
    assert error.message == "namespace 'nowhere' does not exist in cluster 'fake'"
    assert error.hint == "make it: kubectl --context fake create namespace nowhere"


def test_pod_security_refusal_comes_before_anything_is_sent(backend, cluster):
    cluster.enforce_restricted("default")
    plan = plan_of()
    backend.check(rendered(plan))
    error = refusal(backend, plan_of(mounts=[{"path": "/host", "host_path": "/"}]))
    assert "the Pod Security level of namespace 'default' forbids the job's pods" in error.message
    assert "use a claim" in error.hint


def test_a_user_that_openshift_does_not_allow_is_named_with_the_setting(backend, cluster):
    cluster.deny("/pods$", "unable to validate against any security context constraint: [provider restricted-v2: "
                           ".spec.securityContext.fsGroup: Invalid value: []int64{1000}: 1000 is not an allowed group]")
    error = refusal(backend, plan_of())
    assert "no security context constraint of OpenShift admits the job's pods in namespace 'default'" in error.message
    assert "run_as_user: null" in error.hint


def test_quota_account_and_priority_refusals_are_plain(backend, cluster):
    asked = {"nodes": 1, "gpus_per_node": 8}
    cluster.set_quota("default", {"requests.nvidia.com/gpu": "4"})
    assert "quota of namespace 'default' has no room" in refusal(backend, plan_of(resources=asked)).message
    error = refusal(backend, plan_of(profile={"service_account": "ghost"}))
    assert "does not have the profile's service_account" in error.message
    error = refusal(backend, plan_of(profile={"priority_class": "ghost"}))
    assert "does not have the profile's priority_class" in error.message


def test_a_webhook_is_quoted_before_anything_is_sent(backend, cluster):
    cluster.deny("/pods$", "images come from registry.example.com")
    error = refusal(backend, plan_of())
    assert error.message.endswith("denied the request: images come from registry.example.com")
    assert objects_in(cluster) == []


def test_name_that_is_taken_is_refused_and_left_alone(backend, cluster):
    submit(backend, plan_of(IDLE))
    other = plan_of()
    assert refusal(backend, other).hint == f"choose another name: launch submit --run-id {RUN_ID}-2"
    before = objects_in(cluster)
    with pytest.raises(BackendError, match=f"Job '{RUN_ID}' exists already in namespace 'default'"):
        submit(backend, other)
    assert objects_in(cluster) == before


@pytest.mark.parametrize("path", ["/jobs$", "/services$", "/secrets$"])
def test_submit_that_fails_half_way_leaves_nothing(backend, cluster, path):
    cluster.fail_once(500, path)
    with pytest.raises(BackendError):
        submit(backend, plan_of(IDLE, secrets=["HF_TOKEN"]), {"HF_TOKEN": "s3cr3t"})
    wait_for(lambda: objects_in(cluster), lambda found: found == [], "nothing")


def test_a_job_of_somebody_else_stays_when_ours_was_never_answered(backend, cluster):
    """They took the name after our check."""
    plan = plan_of(IDLE)
    asking(cluster).create(next(yaml.safe_load_all(rendered(plan).text)))
    cluster.fail_once(500, "/jobs$")
    with pytest.raises(BackendError):
        submit(backend, plan)
    assert f"Job/{RUN_ID}" in objects_in(cluster)


@pytest.mark.parametrize("kind", ["Job", "Service", "Secret"])
def test_ctrl_c_during_submit_leaves_nothing(backend, cluster, monkeypatch, kind):
    create = Kube.create

    def interrupted(kube: Kube, body: dict[str, Any], **options: Any) -> dict[str, Any]:
        made = create(kube, body, **options)
        if body["kind"] == kind:
            raise KeyboardInterrupt
        return made

    monkeypatch.setattr(Kube, "create", interrupted)
    with pytest.raises(KeyboardInterrupt):
        submit(backend, plan_of(IDLE, secrets=["HF_TOKEN"]), {"HF_TOKEN": "s3cr3t"})
    wait_for(lambda: objects_in(cluster), lambda found: found == [], "nothing")


def test_who_is_not_known_or_not_allowed_is_told_so(tmp_path, store):
    with FakeCluster(tmp_path / "cluster", token="right") as cluster:
        wrong = cluster.kubeconfig.read_text().replace("right", "wrong")
        backend = KubernetesBackend(store, {"KUBECONFIG": str(cluster.kubeconfig)})
        run = submit(backend, plan_of("echo hi"))
        wait_state(backend, run, State.SUCCEEDED)
        assert texts(backend, run) == {0: ["hi"], 1: ["hi"]}
        (tmp_path / "wrong").write_text(wrong)
        error = refusal(KubernetesBackend(store, {"KUBECONFIG": str(tmp_path / "wrong")}), plan_of())
    assert error.message.startswith("cluster 'fake' rejected your credentials")
    error = refusal(backend, plan_of())
    assert error.message.startswith("cluster 'fake' at http://127.0.0.1:")
    assert error.message.endswith("[Errno 111] Connection refused")
    assert error.hint == "see whether it answers: kubectl --context fake cluster-info"


def test_configuration_that_is_missing_or_names_another_context(backend, cluster, store, tmp_path):
    error = refusal(backend, plan_of(profile={"context": "prod"}))
    assert error.message == f"context: 'prod' is not in {cluster.kubeconfig}, which has fake"
    error = refusal(KubernetesBackend(store, {"KUBECONFIG": str(tmp_path / "none")}), plan_of())
    assert error.message.startswith(f"{tmp_path / 'none'}: no cluster configuration")


def test_status_of_a_good_run_outlives_its_job(backend, cluster):
    run = submit(backend, plan_of("true"))
    status = wait_state(backend, run, State.SUCCEEDED)
    assert (status.exit_code, [node.state for node in status.nodes]) == (0, [State.SUCCEEDED] * 2)
    status_of(backend, backend.store, run)
    asking(cluster).delete("Job", "default", RUN_ID, propagation="Background")
    wait_for(lambda: objects_in(cluster), lambda found: found == [], "nothing")
    assert status_of(backend, backend.store, backend.store.find(RUN_ID)).state is State.SUCCEEDED


def test_job_deleted_by_someone_is_unknown(backend, cluster):
    run = submit(backend, plan_of(IDLE))
    asking(cluster).delete("Job", "default", RUN_ID, propagation="Background")
    status = wait_state(backend, run, State.UNKNOWN)
    assert "someone deleted it" in status.reason


def test_first_node_to_fail_gives_exit_code_and_reason(backend):
    script = 'if [ $NODE_RANK = 1 ]; then echo "ValueError: no such thing" >&2; exit 7; fi; ' + IDLE
    status = wait_state(backend, submit(backend, plan_of(script)), State.FAILED)
    assert (status.exit_code, status.reason) == (7, "node 1: exit code 7: ValueError: no such thing")


def test_wrong_configuration_is_not_tried_again(backend):
    status = wait_state(backend, submit(backend, plan_of("exit 78", restarts=3)), State.FAILED)
    assert status.exit_code == 78
    assert "wrong configuration or data" in status.reason
    assert [node.restarts for node in status.nodes if node.exit_code == 78] == [0] * len(status.nodes)


def test_failures_are_tried_again_as_often_as_asked(backend):
    plan = plan_of("echo try; exit 1", restarts=2, resources={"nodes": 1})
    run = submit(backend, plan)
    status = wait_state(backend, run, State.FAILED)
    assert (status.exit_code, status.nodes[0].restarts) == (1, 2)
    assert texts(backend, run) == {0: ["try"] * 3}


def test_too_few_gpus_are_named(backend, cluster):
    run = submit(backend, plan_of(resources={"nodes": 1, "gpus_per_node": 100}))
    status = wait_reason(backend, run, "node 0: no node has enough nvidia.com/gpu")
    assert (status.state, status.nodes[0].state) == (State.PENDING, State.PENDING)


def test_image_that_is_missing_is_named(backend):
    run = submit(backend, plan_of(image="registry.example.com/missing-image:1"))
    status = wait_reason(backend, run, "image registry.example.com/missing-image:1 cannot be pulled")
    assert status.state is State.PENDING


def test_quota_that_fills_up_after_the_check_is_named(backend, cluster):
    cluster.set_quota("default", {"pods": "1"})
    run = submit(backend, plan_of(IDLE))
    wait_reason(backend, run, "1 of 2 pods could not be created: it exceeds the namespace's quota: exceeded quota")


def test_out_of_memory_is_named_with_the_limit(backend, cluster):
    run = submit(backend, plan_of(IDLE, resources={"nodes": 1, "memory_per_node": "64Mi"}))
    wait_state(backend, run, State.RUNNING)
    cluster.kill_pod("default", pod_of(cluster, 0), signal.SIGKILL, oom=True)
    status = wait_state(backend, run, State.FAILED)
    assert status.reason == "node 0: out of memory (the limit is 64Mi), exit code 137"


def test_time_limit_is_named(backend):
    run = submit(backend, plan_of(IDLE, resources={"nodes": 1, "time_limit": "1s"}))
    assert wait_state(backend, run, State.FAILED).reason == "the time limit was reached (resources.time_limit)"


def test_command_that_does_not_exist_is_named(backend):
    run = submit(backend, plan_of(run=["/no/such/binary"], resources={"nodes": 1}))
    status = wait_state(backend, run, State.FAILED)
    assert "the command could not be started" in status.reason
    assert "/no/such/binary" in status.reason


def counting(count: int) -> str:
    """A script that prints numbered lines, now and then the same stamp second."""
    return f"for i in $(seq 1 {count}); do echo $NODE_RANK $i; sleep 0.003; done"


def test_follow_loses_and_doubles_nothing_while_connections_break(backend, cluster):
    cluster.split_utf8 = True
    run = submit(backend, plan_of(counting(300)))
    found: dict[int, list[str]] = {0: [], 1: []}
    breaks = {40: cluster.drop_connections, 120: lambda: cluster.drop_connections(cleanly=True),
              200: lambda: cluster.go_away(0.3)}
    for number, line in enumerate(lines_of(backend, run, follow=True)):
        found[line.node].append(line.text)
        if number in breaks:
            breaks[number]()
    assert found == {node: [f"{node} {i}" for i in range(1, 301)] for node in (0, 1)}
    assert texts(backend, run) == found
    assert texts(backend, run, tail=2, node=1) == {1: ["1 299", "1 300"]}


def test_replaced_pod_is_followed_after_the_one_it_replaces(backend, cluster, shared):
    script = ("trap 'echo stopped; exit 75' TERM; echo up; if [ $NODE_RANK = 1 ] && "
              f"mkdir {shared}/first 2>&-; then while true; do sleep 0.05; done; fi; echo done")
    run = submit(backend, plan_of(script))
    found: list[str] = []
    for line in lines_of(backend, run, follow=True, node=1):
        found.append(line.text)
        if found == ["up"]:
            cluster.evict("default", pod_of(cluster, 1))
    assert found == ["up", "stopped", "up", "done"]
    wait_state(backend, run, State.SUCCEEDED)


def test_exit_code_75_of_a_command_makes_one_pod_and_a_failed_run(backend, cluster):
    run = submit(backend, plan_of("exit 75", restarts=0, resources={"nodes": 1}))
    assert wait_state(backend, run, State.FAILED).exit_code == 75
    assert [pod["metadata"]["labels"]["batch.kubernetes.io/job-completion-index"]
            for pod in asking(cluster).list("Pod", "default")] == ["0"]


def test_cancel_leaves_the_logs_and_nothing_else(backend, cluster):
    script = "trap 'echo saving; sleep 0.1; echo saved; exit 75' TERM; echo up; while true; do sleep 0.1; done"
    run = submit(backend, plan_of(script, secrets=["HF_TOKEN"]), {"HF_TOKEN": "s3cr3t"})
    wait_for(lambda: texts(backend, run), lambda found: len(found) == 2, "both nodes")
    backend.cancel(run)
    assert objects_in(cluster) == []
    assert backend.status(run).state is State.CANCELLED
    backend.cancel(run)
    assert texts(backend, run) == {0: ["up", "saving", "saved"], 1: ["up", "saving", "saved"]}
    assert texts(backend, run, follow=True, tail=1) == {0: ["saved"], 1: ["saved"]}


def test_cancel_that_was_refused_is_no_cancelled_run(backend, cluster, monkeypatch):
    run = submit(backend, plan_of(IDLE))
    wait_state(backend, run, State.RUNNING)

    def refused(kube: Kube, *args: str, **options: str) -> bool:
        raise ApiError("you may not", code=403)

    monkeypatch.setattr(Kube, "delete", refused)
    with pytest.raises(BackendError):
        backend.cancel(run)
    assert backend.status(run).state is State.RUNNING


def test_logs_read_from_the_archive_when_the_job_is_gone(backend, cluster):
    run = submit(backend, plan_of("echo hello; echo; echo world"))
    wait_state(backend, run, State.SUCCEEDED)
    before = list(lines_of(backend, run))
    asking(cluster).delete("Job", "default", RUN_ID, propagation="Background")
    wait_for(lambda: objects_in(cluster), lambda found: found == [], "nothing")
    assert list(lines_of(backend, run)) == before
    assert [line.text for line in before] == ["hello", "", "world"] * 2


def test_error_text_of_a_node_is_no_line(backend, cluster):
    run = submit(backend, plan_of("echo hello", resources={"nodes": 1}))
    wait_state(backend, run, State.SUCCEEDED)
    cluster.fail_once(500, "/log$")
    assert texts(backend, run) == {0: ["hello"]}


def rights_used(cluster: FakeCluster) -> set[tuple[str, str]]:
    """What the requests so far needed, as RBAC names it: verb and resource."""
    used = set()
    for method, path, _, _ in cluster.requests:
        resource, name, sub = [*path.partition("/namespaces/default/")[2].split("/"), "", ""][:3]
        verb = {"POST": "create", "DELETE": "delete", "PATCH": "patch", "GET": "get" if name else "list"}[method]
        used.add((verb, f"{resource}/{sub}" if sub else resource))
    return used


def test_the_role_in_k8s_allows_what_launch_does_and_no_more(backend, cluster):
    plan = plan_of(IDLE, secrets=["HF_TOKEN"], train=TRAIN, run=None)
    cluster.fail_once(500, "/secrets$")
    with pytest.raises(BackendError):
        submit(backend, plan, {"HF_TOKEN": "s3cr3t"})
    used = rights_used(cluster)
    wait_for(lambda: objects_in(cluster), lambda found: found == [], "nothing")
    backend.store.forget(RUN_ID)
    cluster.requests.clear()
    for profile in ({}, {"kubernetes_kind": "JobSet"}):
        cluster.absent_groups = frozenset()
        plan = plan_of(f"echo up; {IDLE}", profile=profile)
        backend.check(rendered(plan))
        run = submit(backend, plan)
        wait_state(backend, run, State.RUNNING)
        for _ in zip(range(1), lines_of(backend, run, follow=True), strict=False):
            backend.cancel(run)
        backend.statuses([run, dataclasses.replace(run, run_id="demo-other")], pytest.fail)
        used |= rights_used(cluster)
        wait_for(lambda: objects_in(cluster), lambda found: found == [], "nothing")
        cluster.requests.clear()
        backend.store.forget(RUN_ID)
    repair_and_prune(backend, cluster)
    used |= rights_used(cluster)
    assert used == allowed_by("role.yaml") | allowed_by("role-prune.yaml")
    assert allowed_by("role-prune.yaml") - allowed_by("role.yaml") == {("list", "secrets")}


def repair_and_prune(backend: KubernetesBackend, cluster: FakeCluster) -> None:
    """What launch does when a machine is lost, when objects are left behind, and to try a preemption."""
    run = submit(backend, plan_of(IDLE, resources={"nodes": 1}))
    host = wait_state(backend, run, State.RUNNING).nodes[0].host
    cluster.lose_node(host)
    backend.repair(run, wait_for(lambda: backend.lost(run), bool, "the lost node"))
    wait_for(lambda: backend.status(run).nodes, lambda nodes: nodes and nodes[0].host != host, "a new pod")
    wait_state(backend, run, State.RUNNING)
    backend._kube(None).evict("default", pod_of(cluster, 0))
    before = list(cluster.requests)
    asking(cluster).delete("Job", "default", RUN_ID, propagation="Orphan")
    for body in run_objects(plan_of(secrets=["HF_TOKEN"], train=TRAIN, run=None))[2:]:
        del body["metadata"]["ownerReferences"]
        asking(cluster).create(body)
    cluster.requests[:] = before
    orphans = wait_for(lambda: backend.orphans(None, pytest.fail),
                      lambda found: {"Service", "ConfigMap", "Secret"} <= {item.kind for item in found}, "the orphans")
    for orphan in orphans:
        backend.remove(orphan)


def allowed_by(name: str) -> set[tuple[str, str]]:
    """The rights that a role gives."""
    role = next(body for body in yaml.safe_load_all((K8S / name).read_text()) if body["kind"] == "Role")
    return {(verb, resource) for rule in role["rules"] for resource in rule["resources"] for verb in rule["verbs"]}
