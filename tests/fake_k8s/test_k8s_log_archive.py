"""A copy of the log on a volume of the fake cluster fills what a node has thrown away."""

import shlex
import signal
import sys

import pytest
import yaml

from launcher.backends.kubernetes.logs import volume as k8s_archive
from launcher.backends.kubernetes.logs.reader_pod import archive_folder, reader_pod
from launcher.backends.kubernetes.objects import run_objects
from launcher.backends.kubernetes.pod import RUN_LABEL
from launcher.errors import SpecError
from launcher.job.load import load_profiles
from launcher.runs.status import State
from launcher.services.job_model import check_profile
from tests.cli_runner import Launch
from tests.fakes.kubernetes.resources import RESOURCES
from tests.k8s_runs import (
    PATIENCE_S,
    asking,
    delete_while_away,
    lines_of,
    plan_of,
    rotate_while_away,
    submit,
    texts,
    wait_for,
    wait_state,
)

TRAIN = {"model": {"path": "/data/model"}, "data": {"sources": [{"path": "/data/rows.jsonl"}]}}
# The entrypoint with a script in the trainer's place; any other module, as the archive's reader, as it is.
PYTHON = """#!/bin/bash
if [ "$2" != trainer.node.entrypoint ]; then exec {python} "$@"; fi
exec {python} -c '
import sys
from trainer.node import entrypoint
entrypoint.trainer_command = lambda *_: ["bash", "{folder}/script"]
sys.exit(entrypoint.main(sys.argv[3:]))' "$@"
"""


@pytest.fixture
def folder(cluster, shared):
    """What the pods share with the test."""
    cluster.run_as_user = False
    cluster.enforce_restricted("default")
    claim = {"apiVersion": "v1", "kind": "PersistentVolumeClaim",
             "metadata": {"name": "volume", "namespace": "default"},
             "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}}}
    cluster.api.create(RESOURCES["persistentvolumeclaims"], "default", claim, {})
    python = shared / "python"
    python.write_text(PYTHON.format(python=shlex.quote(sys.executable), folder=shared))
    python.chmod(0o755)
    return shared


def train(backend, folder, script, **profile):
    """Submit a one-node training whose trainer is a script."""
    (folder / "script").write_text(script)
    archive = {"mounts": [{"path": "/shared", "claim": "volume"}], "log_archive": "/shared/logs"}
    profile = {"python": str(folder / "python"), **archive, **profile}
    return submit(backend, plan_of(run=None, train=TRAIN, resources={"nodes": 1}, profile=profile))


def only_pod(cluster):
    return next(pod["metadata"]["name"] for pod in cluster.store.select("pods", "default"))


def follow_through_a_rotation(backend, cluster, folder, **profile):
    """All lines of a run whose node rotated its log while the server was away."""
    go = folder / "go"
    run = train(backend, folder, f"seq 1 50; until [ -e {go} ]; do sleep 0.05; done; "
                "for i in $(seq 51 300); do echo $i; sleep 0.003; done; seq 301 350", **profile)
    found = []
    for line in lines_of(backend, run, follow=True):
        found.append(line)
        if line.text == "50" and not go.exists():
            rotate_while_away(cluster, only_pod(cluster))
            go.touch()
    return run, found


def readers(cluster):
    return [pod["metadata"]["name"] for pod in asking(cluster).list("Pod", "default",
                                                                    labels="app.kubernetes.io/name=log-reader")]


def test_the_archive_fills_what_the_node_rotated_away(backend, cluster, folder):
    run, found = follow_through_a_rotation(backend, cluster, folder)
    want = [str(number) for number in range(1, 351)]
    assert [line.text for line in found] == want
    stamps = [line.stamp for line in found]
    assert stamps == sorted(stamps)
    assert readers(cluster) == []
    assert texts(backend, run) == {0: want}  # its own archive has them in order, too
    copy = next(cluster.root.rglob(f"logs/{run.run_id}/node-0.*.log"))
    assert copy.read_text().splitlines()[-1] == "end"


def test_without_an_archive_the_gap_is_told(backend, cluster, folder):
    _, found = follow_through_a_rotation(backend, cluster, folder, log_archive=None)
    gaps = [line.text for line in found if line.gap]
    assert len(gaps) == 1
    assert gaps[0].endswith("the node rotated its log while nobody read it")


def test_a_quota_without_room_for_the_reader_leaves_the_gap(backend, cluster, folder):
    pods = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "full", "namespace": "default"},
            "spec": {"hard": {"pods": "1"}}}
    cluster.api.create(RESOURCES["resourcequotas"], "default", pods, {})
    _, found = follow_through_a_rotation(backend, cluster, folder)
    gaps = [line.text for line in found if line.gap]
    assert len(gaps) == 1
    assert "the log archive does not have them: " in gaps[0]
    assert "exceeded quota" in gaps[0]
    assert [line.text for line in found if not line.gap][-1] == "350"


def test_a_reader_that_does_not_start_is_given_up(backend, cluster, folder, monkeypatch):
    monkeypatch.setattr(k8s_archive, "START_S", 0)
    monkeypatch.setattr(k8s_archive, "reader_pod", lambda *args: {
        **reader_pod(*args), "spec": {**reader_pod(*args)["spec"], "nodeSelector": {"no": "such"}}})
    _, found = follow_through_a_rotation(backend, cluster, folder)
    gaps = [line.text for line in found if line.gap]
    assert len(gaps) == 1
    assert "its reader was not started within 0 s" in gaps[0]
    assert readers(cluster) == []


def test_the_end_of_a_pod_that_was_deleted_is_filled(backend, cluster, folder):
    go = folder / "go"
    run = train(backend, folder, f"trap 'echo saved; exit 75' TERM; echo up; if [ -e {go} ]; then exit 0; fi; "
                "while true; do sleep 0.05; done")
    found = []

    for line in lines_of(backend, run, follow=True):
        found.append(line)
        if len(found) == 1:
            delete_while_away(cluster, only_pod(cluster), go.touch)
    assert [line.text for line in found] == ["up", "saved", "up"]


def test_ctrl_c_while_a_reader_runs_leaves_none(backend, cluster, folder, launch: Launch):
    go, held = folder / "go", folder / "held"
    run = train(backend, folder, f"seq 1 50; until [ -e {go} ]; do sleep 0.05; done; seq 51 100; "
                f"until [ -e {held} ]; do sleep 0.05; done")
    python = folder / "python"
    python.write_text(python.read_text().replace("then exec", f"then until [ -e {held} ]; do sleep 0.1; done; exec"))
    wait_state(backend, run, State.RUNNING)
    wait_for(lambda: texts(backend, run).get(0, []), lambda lines: len(lines) == 50)
    cluster.rotate_logs("default", only_pod(cluster))
    go.touch()
    launch.env.update(KUBECONFIG=str(cluster.kubeconfig), LAUNCH_HOME=str(backend.store.root.parent))
    follower = launch.start("logs", "-f", run.run_id)
    wait_for(lambda: readers(cluster), bool, "a reader")
    follower.send_signal(signal.SIGINT)
    _, errors = follower.communicate(timeout=PATIENCE_S)
    assert follower.returncode == 130, errors
    assert readers(cluster) == []
    held.touch()
    wait_state(backend, run, State.SUCCEEDED)
    assert texts(backend, run) == {0: [str(number) for number in range(1, 101)]}


@pytest.mark.parametrize("kind", ["Job", "JobSet"])
def test_a_reader_is_made_from_the_runs_own_pods(kind):
    mounts = [{"path": "/shared", "claim": "outer"}, {"path": "/shared/logs", "claim": "inner"}]
    place = {"kubernetes_kind": kind, "mounts": mounts, "log_archive": "/shared/logs/x/", "python": "python3.12"}
    owner = run_objects(plan_of(run=None, train=TRAIN, profile=place))[0]
    owner["metadata"]["uid"] = "u"
    assert archive_folder(owner) == "/shared/logs/x/demo-0123abcd"
    file = "/shared/logs/x/demo-0123abcd/node-0.p.log"
    pod = reader_pod(owner, "reader", file, "-", "-")
    container = pod["spec"]["containers"][0]
    assert container["command"] == ["python3.12", "-P", "-m", "trainer.node.archive", file, "-", "-"]
    assert [volume["persistentVolumeClaim"] for volume in pod["spec"]["volumes"]] == [{"claimName": "inner"}]
    assert [mount["readOnly"] for mount in container["volumeMounts"]] == [True]
    assert "nvidia.com/gpu" not in container["resources"]["limits"]
    assert (pod["metadata"]["ownerReferences"][0]["kind"], RUN_LABEL in pod["metadata"]["labels"]) == (kind, False)


def test_a_reader_of_pods_from_which_an_overlay_has_taken_fields():
    bare = {"containers": [{"name": "trainer", "securityContext": None, "imagePullPolicy": None}]}
    place = {"mounts": [{"path": "/shared", "claim": "volume"}], "log_archive": "/shared/logs", "pod": bare}
    owner = run_objects(plan_of(run=None, train=TRAIN, profile=place))[0]
    owner["metadata"]["uid"] = "u"
    pod = reader_pod(owner, "reader", "/shared/logs/demo-0123abcd/node-0.p.log", "-", "-")
    assert not {"securityContext", "imagePullPolicy"} & pod["spec"]["containers"][0].keys()


def test_only_training_jobs_archive():
    place = {"mounts": [{"path": "/shared", "claim": "volume"}], "log_archive": "/shared/logs"}
    assert archive_folder(run_objects(plan_of(profile=place))[0]) is None
    assert archive_folder(run_objects(plan_of(run=None, train=TRAIN))[0]) is None


@pytest.mark.parametrize(("profile", "why"), [
    ({"log_archive": "/elsewhere"}, "must be a folder below one of the profile's writable mounts (/shared), not"),
    ({"log_archive": "/shared/../etc"}, "must be a folder below"),
    ({"log_archive": "/sharedx"}, "must be a folder below"),
    ({"log_archive": "/shared/$(HOME)"}, "must be a folder below"),
    ({"log_archive": "/shared/logs", "mounts": []}, "(there are none)"),
    ({"log_archive": "/shared", "mounts": [{"path": "/shared", "claim": "volume", "read_only": True}]}, "(there are"),
    ({"log_archive": "/shared", "backend": "slurm"}, "a setting of kubernetes profiles, and this one is for slurm"),
])
def test_an_archive_that_cannot_be_is_refused(tmp_path, profile, why):
    path = tmp_path / "clusters.yaml"
    place = {"backend": "kubernetes", "mounts": [{"path": "/shared", "claim": "volume"}], **profile}
    path.write_text(yaml.safe_dump({"here": place}))
    with pytest.raises(SpecError) as caught:
        check_profile(load_profiles(path)["here"])
    assert why in str(caught.value)
