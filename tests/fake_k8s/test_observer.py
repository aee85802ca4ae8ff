"""Many who want to know of the same runs ask the cluster once."""

import threading
import time

import pytest

from launcher.backends.kubernetes.backend import KubernetesBackend
from launcher.backends.kubernetes.observer import Observer
from launcher.logs.line import LogQuery
from launcher.runs.status import State
from launcher.services.ends import states_of
from tests import jobs
from tests.cli_runner import Launch
from tests.fakes.kubernetes import FakeCluster
from tests.k8s_runs import asking, plan_of, submit, wait_state

READERS = 20


def asked(cluster: FakeCluster, since: int = 0) -> list[str]:
    """The last part of each request's path, and a name apart."""
    return [f"{method} {path.partition('/namespaces/default/')[2]}" for method, path, *_ in cluster.requests[since:]]


def some_runs(backend: KubernetesBackend, *scripts: str, kind: str = "Job") -> list:
    """A run for each script."""
    plans = [jobs.plan_of({"name": "demo", "run": ["bash", "-c", script], "resources": {"nodes": 2}},
                          {"backend": "kubernetes", "grace": "5s", "kubernetes_kind": kind}, run_id=f"demo-{number}")
             for number, script in enumerate(scripts)]
    return [submit(backend, plan) for plan in plans]


@pytest.mark.parametrize("kind", ["Job", "JobSet"])
def test_a_list_of_runs_is_one_query_a_kind_of_object(backend, cluster, store, monkeypatch, kind):
    cluster.absent_groups = frozenset()
    monkeypatch.setenv("KUBECONFIG", str(cluster.kubeconfig))
    runs = some_runs(backend, "true", "sleep 60", "exit 3", kind=kind)
    for run, state in zip(runs, (State.SUCCEEDED, State.RUNNING, State.FAILED), strict=True):
        wait_state(backend, run, state)
    before = len(cluster.requests)
    states = states_of(store, store.all())
    assert list(states.values()) == [State.SUCCEEDED, State.RUNNING, State.FAILED]
    kinds = ["jobs", "jobsets"] if kind == "JobSet" else ["jobs"]
    assert sorted(asked(cluster, before)) == sorted(f"GET {name}" for name in [*kinds, "pods"])
    before = len(cluster.requests)
    assert states_of(store, store.all()) == states  # of the three only one has not been seen to end
    assert len(asked(cluster, before)) == len(kinds) + 1


def test_a_cluster_that_does_not_answer_is_asked_and_told_of_once(backend, cluster, launch: Launch):
    some_runs(backend, "sleep 60", "sleep 60", "sleep 60")
    launch.env.update(KUBECONFIG=str(cluster.kubeconfig), LAUNCH_HOME=str(backend.store.root.parent))
    cluster.fail_once(403, "/jobs$")
    listed = launch.run("list")
    assert listed.returncode == 0
    assert [line.split()[1] for line in listed.stdout.splitlines()[1:]] == ["unknown"] * 3
    assert listed.stderr.count("warning") == 1
    assert "/default: " in listed.stderr


def test_readers_of_one_run_share_each_look(backend, cluster):
    run, = some_runs(backend, "true")
    wait_state(backend, run, State.SUCCEEDED)
    observer = Observer(asking(cluster), "default")
    before = len(cluster.requests)
    threads = [threading.Thread(target=observer.look, args=(run, 60.0)) for _ in range(READERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert asked(cluster, before) == ["GET jobs/demo-0", "GET pods"]


def test_a_look_is_never_older_than_asked_for(backend, cluster):
    run, = some_runs(backend, "true")
    wait_state(backend, run, State.SUCCEEDED)
    observer = Observer(asking(cluster), "default")
    began = time.monotonic()
    assert observer.look(run).at >= began
    again = time.monotonic()
    assert observer.look(run).at >= again


def test_a_follower_asks_for_lists_only(backend, cluster):
    """Not for each pod: a thousand nodes would be a thousand requests."""
    run = submit(backend, plan_of("echo done"))
    wait_state(backend, run, State.SUCCEEDED)
    before = len(cluster.requests)
    list(backend.logs(run, LogQuery(follow=True)))
    assert not [words for words in asked(cluster, before) if words.startswith("GET pods/") and "/log" not in words]
