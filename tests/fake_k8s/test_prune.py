"""launch prune: what runs have left is found and removed, and nothing else is touched."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from launcher.runs.status import State
from launcher.runs.store import RunStore
from tests.cli_runner import Launch
from tests.fakes.kubernetes import FakeCluster
from tests.k8s_runs import IDLE, RUN_ID, asking, objects_in, plan_of, submit, wait_for, wait_state

OTHERS = {"metadata": {"name": "settings", "labels": {"app.kubernetes.io/managed-by": "somebody"}}, "data": {}}


@pytest.fixture
def command(cluster: FakeCluster, store: RunStore, tmp_path: Path) -> Launch:
    """The real command, on the runs of the test."""
    return Launch(home=store.root.parent, cwd=tmp_path, env={"KUBECONFIG": str(cluster.kubeconfig)})


def orphan(cluster: FakeCluster) -> None:
    """Delete the Job as the API's own default does: all that it owns stays."""
    asking(cluster).delete("Job", "default", RUN_ID, propagation="Orphan")


def found(backend) -> list[str]:
    """The orphans by kind and name."""
    return sorted(f"{orphan.kind}/{orphan.name.rpartition('-')[0]}" if orphan.kind == "Pod" else
                  f"{orphan.kind}/{orphan.name}" for orphan in backend.orphans(None, pytest.fail))


def test_what_an_orphaning_delete_leaves_is_found_and_removed(backend, cluster, command):
    cluster.create("configmaps", OTHERS, "default")
    run = submit(backend, plan_of(IDLE, secrets=["TOKEN"]), {"TOKEN": "s3cr3t"})
    backend.store.claim("interrupted")
    backend.store.save(replace(run, run_id="interrupted"))
    wait_state(backend, run, State.RUNNING)
    assert found(backend) == []
    assert "nothing to remove" in command.run("prune", "--yes").stderr
    orphan(cluster)
    left = [f"Pod/{RUN_ID}-0", f"Pod/{RUN_ID}-1", f"Secret/{RUN_ID}", f"Service/{RUN_ID}"]
    wait_for(lambda: found(backend), lambda orphans: orphans == left, "the orphans")
    listed = command.json("prune")
    assert {(orphan["kind"], orphan["where"]) for orphan in listed} == {
        ("Pod", "fake/default"), ("Secret", "fake/default"), ("Service", "fake/default")}
    assert listed[0]["why"] == f"it has no owner, and there is no Job or JobSet {RUN_ID}"
    asked = command.run("prune")
    assert (asked.returncode, f"Service  {RUN_ID}" in asked.stdout) == (2, True)
    assert asked.stderr.endswith("hint:  launch prune --yes\n")
    assert len(objects_in(cluster)) == 5
    command.ok("prune", "--yes")
    wait_for(lambda: objects_in(cluster), lambda objects: objects == ["ConfigMap/settings"], "the rest")


def test_objects_of_another_run_that_lives_are_left_alone(backend, cluster):
    """Its Job is there under the same name: an object without owner may be about to get one."""
    run = submit(backend, plan_of(IDLE))
    wait_state(backend, run, State.RUNNING)
    labels = {"app.kubernetes.io/managed-by": "launch", "launch/run-id": RUN_ID}
    cluster.create("configmaps", {"metadata": {"name": f"{RUN_ID}-x", "labels": labels}}, "default")
    assert found(backend) == []
    orphan(cluster)
    wait_for(lambda: found(backend), lambda orphans: f"ConfigMap/{RUN_ID}-x" in orphans, "the orphans")


def test_an_object_that_was_replaced_meanwhile_is_not_removed(backend, cluster):
    run = submit(backend, plan_of("true"))
    wait_state(backend, run, State.SUCCEEDED)
    orphan(cluster)
    wait_for(lambda: found(backend), bool, "the orphans")
    service = next(item for item in backend.orphans(None, pytest.fail) if item.kind == "Service")
    kube = asking(cluster)
    body = kube.get("Service", "default", RUN_ID)
    kube.delete("Service", "default", RUN_ID, propagation="Background")
    cluster.create("services", {"metadata": {"name": RUN_ID}, "spec": {"clusterIP": "None"}}, "default")
    assert body["metadata"]["uid"] == service.key[2]
    backend.remove(service)
    assert kube.get("Service", "default", RUN_ID)


def test_who_may_not_list_secrets_is_told_so_and_a_cluster_that_is_away_stops_nothing(backend, cluster, tmp_path):
    run = submit(backend, plan_of("true"))
    wait_state(backend, run, State.SUCCEEDED)
    orphan(cluster)
    warned: list[str] = []
    cluster.fail_once(403, "/secrets$")
    kinds = wait_for(lambda: {orphan.kind for orphan in backend.orphans(None, warned.append)}, bool, "the orphans")
    assert kinds <= {"Pod", "Service"}
    assert warned[0].startswith("fake/default: Secrets could not be listed: ")
    cluster.go_away(2)
    assert backend.orphans(None, warned.append) == []
    assert "cannot be reached" in warned[-1]


def test_a_profile_names_another_place(backend, cluster, command):
    cluster.create("namespaces", {"metadata": {"name": "team"}})
    labels = {"app.kubernetes.io/managed-by": "launch", "launch/run-id": "gone"}
    cluster.create("services", {"metadata": {"name": "gone", "labels": labels}, "spec": {}}, "team")
    (command.cwd / "clusters.yaml").write_text("team: {backend: kubernetes, namespace: team}\n")
    assert command.json("prune") == []
    assert [orphan["where"] for orphan in command.json("prune", "--cluster", "team")] == ["fake/team"]
    wrong = command.run("prune", "--cluster", "tean")
    assert (wrong.returncode, "did you mean team?" in wrong.stderr) == (2, True)


def test_folders_of_submits_that_never_ended_go_when_they_are_old(command, store):
    for name in ("old-1", "young-1", "sent-1"):
        assert store.claim(name)
    (store.folder("sent-1") / "run.json").write_text("{}")
    long_ago = time.time() - 2 * 3600
    for name in ("old-1", "sent-1"):
        os.utime(store.folder(name), (long_ago, long_ago))
    assert [(orphan["kind"], orphan["name"]) for orphan in command.json("prune")] == [("run folder", "old-1")]
    command.ok("prune", "--yes")
    assert sorted(path.name for path in store.root.iterdir()) == ["sent-1", "young-1"]
