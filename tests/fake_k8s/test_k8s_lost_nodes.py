"""A machine goes away under a run: it is noticed, told, and repaired."""

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.backends.kubernetes.backend import KubernetesBackend
from launcher.runs.record import Run
from launcher.runs.status import State
from launcher.services import follow
from tests.cli_runner import Launch
from tests.fakes.kubernetes import FakeCluster
from tests.k8s_runs import RUN_ID, asking, plan_of, pod_of, submit, wait_for, wait_reason, wait_state

GPUS = {"nodes": 2, "gpus_per_node": 1}  # two nodes of a job with GPUs never share a machine


@pytest.fixture
def go(shared: Path) -> Path:
    """A file that lets a job end, once it is there."""
    return shared / "go"


def start(backend: KubernetesBackend, cluster: FakeCluster, go: Path, **profile: str) -> tuple[Run, str]:
    """A run of two nodes, and the machine of the second, which is then lost."""
    run = submit(backend, plan_of(f"until [ -e {go} ]; do sleep 0.05; done", profile=profile, resources=GPUS))
    nodes = wait_for(lambda: backend.status(run).nodes,
                     lambda found: [node.state for node in found] == [State.RUNNING] * 2, "both nodes")
    assert nodes[0].host != nodes[1].host
    assert backend.lost(run) == []
    cluster.lose_node(nodes[1].host)
    return run, nodes[1].host


def wait_repaired(backend: KubernetesBackend, run: Run, go: Path) -> None:
    """The lost node runs elsewhere; then the run may end."""
    wait_for(lambda: backend.status(run), lambda status: status.reason is None, "the new pod")
    go.touch()
    status = wait_state(backend, run, State.SUCCEEDED)
    assert [node.exit_code for node in status.nodes] == [0, 0]


def test_repair_replaces_what_kubernetes_does_not(backend, cluster, go):
    run, host = start(backend, cluster, go)
    wait_reason(backend, run, f"node 1: its machine {host} is lost; if it does not come back: launch repair {RUN_ID}")
    lost = backend.lost(run)
    assert [(node.node, node.host) for node in lost] == [(1, host)]
    kube, old = asking(cluster), pod_of(cluster, 1)
    kube.delete("Pod", "default", old, propagation="Background", at_once=True)
    assert kube.get("Pod", "default", old)["status"]["phase"] == "Running"  # a force delete alone changes nothing
    backend.repair(run, lost)
    wait_for(lambda: backend.lost(run), lambda found: found == [], "no lost node")
    backend.repair(run, lost)
    wait_repaired(backend, run, go)
    job = kube.get("Job", "default", RUN_ID)
    assert "failed" not in job["status"]  # it has spent no restart


def test_a_machine_that_comes_back_needs_no_repair(backend, cluster, go):
    run, host = start(backend, cluster, go)
    wait_for(lambda: backend.lost(run), bool, "the lost node")
    cluster.restore_node(host)
    wait_for(lambda: backend.lost(run), lambda found: found == [], "no lost node")
    wait_repaired(backend, run, go)


@pytest.mark.parametrize("repair", ["ask", "auto"])
def test_a_follower_tells_and_repairs_only_where_it_may(backend, cluster, go, capsys, monkeypatch, repair):
    monkeypatch.setattr(follow, "RUNNING_LOOK_S", 0.1)
    run, host = start(backend, cluster, go, repair=repair)
    told = f"* {RUN_ID}: node 1: its machine {host} is lost"
    said = ""

    def heard() -> str:
        nonlocal said
        said += capsys.readouterr().err
        return said

    with follow.watched(backend, run):
        wait_for(heard, lambda text: told in text, told)
        if repair == "auto":
            wait_for(heard, lambda text: "node 1 given up, to be restarted on another machine" in text, "the repair")
            wait_repaired(backend, run, go)
            return
        wait_for(heard, lambda text: f"launch repair {RUN_ID}" in text, "what to do")
    assert backend.lost(run)
    assert said.count(told) == 1
    backend.repair(run, backend.lost(run))
    wait_repaired(backend, run, go)


def test_the_command_asks_and_names_the_answer_where_nobody_can(backend, cluster, go, store, tmp_path):
    run, host = start(backend, cluster, go)
    wait_for(lambda: backend.lost(run), bool, "the lost node")
    launch = Launch(home=store.root.parent, cwd=tmp_path, env={"KUBECONFIG": str(cluster.kubeconfig)})
    asked = subprocess.run([sys.executable, "-m", "launcher.cli", "repair"], cwd=Path.cwd(), env=launch.environ(),
                           text=True, capture_output=True, stdin=subprocess.DEVNULL, check=False)
    assert asked.returncode == 2
    assert f"node 1: its machine {host} is lost" in asked.stderr
    assert asked.stderr.endswith(f"hint:  launch repair --yes {RUN_ID}\n")
    assert backend.lost(run)
    launch.ok("repair", "--yes", RUN_ID)
    wait_repaired(backend, run, go)
    assert "no node of it is on a lost machine" in launch.run("repair").stderr
