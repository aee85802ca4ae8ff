"""Runs as JobSets, with the JobSet controller of the fake cluster."""

import pytest

from launcher.errors import BackendError
from launcher.runs.status import State
from launcher.services.ends import status_of
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
    wait_state,
)

PROFILE = {"kubernetes_kind": "JobSet"}


@pytest.fixture(autouse=True)
def job_set_installed(cluster):
    """JobSet is an add-on."""
    cluster.absent_groups = frozenset()


def restarts(cluster) -> dict[str, int]:
    """What the JobSet has counted."""
    status = asking(cluster).get("JobSet", "default", RUN_ID)["status"]
    return {name: status[name] for name in ("restarts", "restartsCountTowardsMax")}


def test_a_cluster_without_job_set_is_told_what_to_do(backend, cluster):
    cluster.absent_groups = frozenset({"jobset.x-k8s.io"})
    plan = plan_of(profile=PROFILE)
    with pytest.raises(BackendError) as caught:
        backend.check(rendered(plan))
    assert "does not have this kind of object" in caught.value.message
    assert "take kubernetes_kind out of the cluster's profile" in caught.value.hint
    assert objects_in(cluster) == []


def test_nodes_find_each_other_and_the_end_outlives_the_job_set(backend, cluster):
    script = ('until getent hosts "$MASTER_ADDR" >/dev/null; do sleep 0.1; done; '
              'echo "$NODE_RANK of $MASTER_ADDR: $TOKEN"; sleep 1')  # pod 0 has its name as long as it runs
    plan = plan_of(script, profile=PROFILE, secrets=["TOKEN"])
    backend.check(rendered(plan))
    assert objects_in(cluster) == []
    run = submit(backend, plan, {"TOKEN": "s3cr3t"})
    want = {node: [f"{node} of {RUN_ID}-n-0-0.{RUN_ID}: s3cr3t"] for node in (0, 1)}
    assert texts(backend, run, follow=True) == want
    status = wait_state(backend, run, State.SUCCEEDED)
    assert [(node.node, node.exit_code, node.restarts) for node in status.nodes] == [(0, 0, 0), (1, 0, 0)]
    status_of(backend, backend.store, run)
    asking(cluster).delete("JobSet", "default", RUN_ID, propagation="Background")
    wait_for(lambda: objects_in(cluster), lambda found: found == [], "nothing")
    assert status_of(backend, backend.store, backend.store.find(RUN_ID)).state is State.SUCCEEDED
    assert texts(backend, run) == want


def test_a_failure_restarts_all_nodes_until_the_budget_is_spent(backend, cluster, shared):
    # a JobSet deletes the pods of an attempt with their logs: only what was read meanwhile is kept
    script = ("echo try; if [ $NODE_RANK = 1 ]; then "
              f"until rmdir {shared}/read 2>&-; do sleep 0.05; done; exit 9; fi; {IDLE}")
    run = submit(backend, plan_of(script, profile=PROFILE, restarts=2))
    tries = []
    for line in lines_of(backend, run, follow=True, node=1):
        tries.append(line.text)
        (shared / "read").mkdir()
    assert tries == ["try"] * 3
    status = wait_state(backend, run, State.FAILED)
    assert (status.exit_code, status.reason) == (9, "node 1: exit code 9: try")
    assert next(node for node in status.nodes if node.node == 1).restarts == 2
    assert restarts(cluster) == {"restarts": 2, "restartsCountTowardsMax": 2}


def test_a_preemption_spends_no_restart_and_a_wrong_configuration_ends_at_once(backend, cluster, shared):
    script = (f"trap 'echo saved; exit 75' TERM; echo up; "
              f"if mkdir {shared}/first 2>&-; then while true; do sleep 0.05; done; fi; exit 78")
    run = submit(backend, plan_of(script, profile=PROFILE, restarts=5, resources={"nodes": 1}))
    found = []
    for line in lines_of(backend, run, follow=True):
        found.append(line.text)
        if found == ["up"]:
            cluster.evict("default", pod_of(cluster, "n-0-0"))
    assert found == ["up", "saved", "up"]
    status = wait_state(backend, run, State.FAILED)
    assert (status.exit_code, "wrong configuration or data" in status.reason) == (78, True)
    assert restarts(cluster) == {"restarts": 0, "restartsCountTowardsMax": 0}


def test_exit_code_75_of_a_command_is_a_failure_like_any_other(backend, cluster):
    run = submit(backend, plan_of("exit 75", profile=PROFILE, restarts=0))
    assert wait_state(backend, run, State.FAILED).exit_code == 75
    assert restarts(cluster) == {"restarts": 0, "restartsCountTowardsMax": 0}


def test_cancel_leaves_the_logs_and_nothing_else(backend, cluster):
    script = "trap 'echo saving; sleep 0.1; echo saved; exit 75' TERM; echo up; while true; do sleep 0.1; done"
    run = submit(backend, plan_of(script, profile=PROFILE, secrets=["TOKEN"]), {"TOKEN": "s3cr3t"})
    wait_for(lambda: texts(backend, run), lambda found: len(found) == 2, "both nodes")
    backend.cancel(run)
    assert objects_in(cluster) == []
    assert backend.status(run).state is State.CANCELLED
    assert texts(backend, run) == {0: ["up", "saving", "saved"], 1: ["up", "saving", "saved"]}


@pytest.mark.parametrize("path", ["/jobsets$", "/secrets$"])
def test_submit_that_fails_half_way_leaves_nothing(backend, cluster, path):
    cluster.fail_once(500, path)
    with pytest.raises(BackendError):
        submit(backend, plan_of(IDLE, profile=PROFILE, secrets=["TOKEN"]), {"TOKEN": "s3cr3t"})
    wait_for(lambda: objects_in(cluster), lambda found: found == [], "nothing")


def test_a_lost_machine_is_repaired_as_with_a_job(backend, cluster):
    run = submit(backend, plan_of(IDLE, profile=PROFILE, resources={"nodes": 2, "gpus_per_node": 1}))
    nodes = wait_for(lambda: backend.status(run).nodes,
                     lambda found: [node.state for node in found] == [State.RUNNING] * 2, "both nodes")
    cluster.lose_node(nodes[1].host)
    lost = wait_for(lambda: backend.lost(run), bool, "the lost node")
    backend.repair(run, lost)
    new = wait_for(lambda: backend.status(run), lambda status: status.reason is None, "the new pod")
    assert new.nodes[1].host not in (nodes[0].host, nodes[1].host)
    assert restarts(cluster) == {"restarts": 0, "restartsCountTowardsMax": 0}
    backend.cancel(run)
