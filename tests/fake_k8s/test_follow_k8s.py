"""Following pods of the fake cluster, over HTTP, through trouble; and what the user is told meanwhile."""

import signal
import threading
import time
from datetime import datetime

import pytest

from launcher.logs.line import LogQuery
from launcher.runs.status import State
from launcher.services import follow as watch
from launcher.services.follow import watched
from tests.cli_runner import Launch
from tests.k8s_runs import (
    PATIENCE_S,
    delete_while_away,
    lines_of,
    plan_of,
    pod_of,
    rotate_while_away,
    submit,
    texts,
    wait_for,
    wait_state,
)


def counting(count, after="true"):
    """A script that prints numbered lines at some hundred a second."""
    return f"for i in $(seq 1 {count}); do echo $i; sleep 0.003; done; {after}"


def one_node(script, **fields):
    return plan_of(script, resources={"nodes": 1}, **fields)


@pytest.fixture
def gate(shared):
    """A line of bash that waits, and the file that lets it go on."""
    return f"until [ -e {shared}/go ]; do sleep 0.05; done", shared / "go"


def only_pod(cluster):
    """The pod's name, from the fake itself: its API may be away."""
    return next(pod["metadata"]["name"] for pod in cluster.store.select("pods", "default"))


def numbers(found):
    """The numbers of a node's lines, None for a gap."""
    return [None if line.gap else int(line.text) for line in found]


def test_lines_rotated_away_while_the_server_was_away_are_a_gap(backend, cluster, gate):
    wait, go = gate
    run = submit(backend, one_node(f"seq 1 50; {wait}; {counting(300)}; seq 351 400"))
    found = []
    for line in lines_of(backend, run, follow=True):
        found.append(line)
        if line.text == "50" and not go.exists():
            rotate_while_away(cluster, only_pod(cluster))  # its stream is cut, and cannot come back before
            go.touch()
    seen = numbers(found)
    gap = found[seen.index(None)].gap
    assert seen[:50] == list(range(1, 51))
    assert seen.count(None) == 1 and seen[50] is None
    assert (gap.after, gap.before) == (found[49].stamp, found[51].stamp)
    assert seen[-50:] == list(range(351, 401))
    assert list(lines_of(backend, run)) == found


def test_a_rotation_while_connected_loses_nothing(backend, cluster):
    run = submit(backend, one_node(counting(150)))
    found = []
    for line in lines_of(backend, run, follow=True):
        found.append(line)
        if len(found) in (40, 80):
            cluster.rotate_logs("default", pod_of(cluster, 0))
    assert numbers(found) == list(range(1, 151))


def test_throttled_requests_are_asked_again_after_the_time_they_name(backend, cluster):
    run = submit(backend, one_node(counting(50)))
    wait_state(backend, run, State.RUNNING, State.SUCCEEDED)
    cluster.throttle(1)
    began = time.monotonic()
    assert numbers(lines_of(backend, run, follow=True)) == list(range(1, 51))
    assert time.monotonic() - began > 0.9  # the fake says: one second


def test_an_outdated_list_is_asked_for_again(backend, cluster):
    run = submit(backend, one_node("seq 1 5"))
    wait_state(backend, run, State.SUCCEEDED)
    cluster.fail_once(410, "/pods$")
    assert numbers(lines_of(backend, run, follow=True)) == list(range(1, 6))


def test_progress_bars_and_unfinished_lines(backend, cluster):
    run = submit(backend, one_node(r"printf '10%%\r50%%\r100%%\n'; printf 'no end'"))
    wait_state(backend, run, State.SUCCEEDED)
    assert texts(backend, run) == {0: ["100%", "no end"]}


def test_two_followers_of_one_run_see_everything(backend, cluster):
    run = submit(backend, plan_of(counting(150)))
    found = {}

    def follow(name):
        found[name] = texts(backend, run, follow=True)

    followers = [threading.Thread(target=follow, args=(name,)) for name in "ab"]
    for follower in followers:
        follower.start()
    wait_state(backend, run, State.SUCCEEDED)
    for follower in followers:
        follower.join(PATIENCE_S)
    want = {node: [str(number) for number in range(1, 151)] for node in (0, 1)}
    assert found == {"a": want, "b": want}
    cluster.go_away(0)
    assert texts(backend, run) == want
    kept = [path.read_text().splitlines() for path in (backend.store.folder(run.run_id) / "logs").glob("node-*.log")]
    assert [[line.split(" ")[1] for line in lines] for lines in kept] == list(want.values())


def test_since_on_kubernetes_goes_by_the_lines_stamps(backend, cluster):
    run = submit(backend, one_node("echo early; sleep 0.05; echo late"))
    wait_state(backend, run, State.SUCCEEDED)
    late = list(lines_of(backend, run))[-1]
    since = datetime.fromisoformat(f"{late.stamp[:26]}+00:00")
    assert [line.text for line in lines_of(backend, run, since=since)] == ["late"]
    assert texts(backend, run) == {0: ["early", "late"]}


def test_a_pending_run_says_why_once(backend, cluster, capfd, monkeypatch):
    monkeypatch.setattr(watch, "PENDING_LOOK_S", 0.1)
    for name in cluster.nodes.names():
        cluster.set_gpus(name, 0)
    run = submit(backend, plan_of("echo done", resources={"nodes": 1, "gpus_per_node": 1}))
    told = ""

    def said():
        nonlocal told
        told += capfd.readouterr().err
        return told

    with watched(backend, run):
        wait_for(said, lambda text: "is pending: " in text and "nvidia.com/gpu" in text, "a reason")
        lines = backend.logs(run, LogQuery(follow=True))
        for name in cluster.nodes.names():
            cluster.set_gpus(name, 1)
        assert [line.text for batch in lines for line in batch] == ["done"]
    reasons = [line for line in said().splitlines() if "is pending: " in line]
    assert len(reasons) == len(set(reasons))


def test_ctrl_c_ends_with_130_and_leaves_whole_archives(backend, cluster, launch: Launch, gate):
    wait, go = gate
    run = submit(backend, plan_of(f"seq 1 2000; {wait}; echo last"))
    launch.env.update(KUBECONFIG=str(cluster.kubeconfig), LAUNCH_HOME=str(backend.store.root.parent))
    follower = launch.start("logs", "-f", run.run_id)
    first = [follower.stdout.readline() for _ in range(100)]
    assert all(line.startswith("[node ") for line in first)
    follower.send_signal(signal.SIGINT)
    _, errors = follower.communicate(timeout=PATIENCE_S)
    assert follower.returncode == 130, errors
    assert "Traceback" not in errors
    for path in (backend.store.folder(run.run_id) / "logs").glob("node-*.log"):
        assert path.read_bytes()[-1:] in (b"\n", b"")
    go.touch()
    wait_state(backend, run, State.SUCCEEDED)
    want = [*map(str, range(1, 2001)), "last"]
    assert texts(backend, run) == {0: want, 1: want}


def test_a_pod_that_goes_while_nobody_can_connect_is_told(backend, cluster, gate):
    wait, go = gate
    run = submit(backend, one_node(f"echo up; {wait}; echo down", restarts=1))
    found = []

    for line in lines_of(backend, run, follow=True):
        found.append(line)
        if len(found) == 1:
            delete_while_away(cluster, only_pod(cluster), go.touch, gracePeriodSeconds=0)
    assert [bool(line.gap) for line in found] == [False, True, False, False]
    assert found[1].gap.after == found[0].stamp
    assert found[1].text.endswith("its pod was deleted before it was read to the end")
    assert [line.text for line in found[2:]] == ["up", "down"]
