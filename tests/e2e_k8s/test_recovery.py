"""What happens to a run on a real cluster when pods, machines and the API server go away."""

import time

import pytest

from tests.e2e_k8s.conftest import PATIENCE_S, Site, nodes_of, option, run_option, shell, wait_until

# Ends well once it has been started twice; told to stop, it saves and says so.
TWICE = (
    "trap 'echo saving; sleep 1; echo saved; exit 75' TERM\n"
    "echo up; for i in $(seq 1 {seconds}0); do sleep 0.1; done; echo done\n"
)


def test_an_evicted_pod_saves_and_comes_back_and_spends_no_restart(site: Site):
    run_id = site.submit(site.job(run=shell(TWICE.format(seconds=25)), restarts=0))
    seen: list[str] = []
    for line in site.followed(run_id, "--node", "1"):
        seen.append(line.partition("] ")[2])
        if seen == ["up"]:
            site.cluster.evict(site.cluster.pods(run_id)[1])
    assert seen == ["up", "saving", "saved", "up", "done"]
    status = site.wait(run_id, "succeeded")
    assert [node["exit_code"] for node in status["nodes"]] == [0, 0]
    job = site.cluster.kind("Job", "batch/v1").get(name=run_id, namespace=site.cluster.namespace)
    assert not job.status.failed


@pytest.mark.parametrize("node", [0, 1])
def test_a_deleted_pod_is_replaced_and_its_lines_are_kept(site: Site, node: int):
    script = "trap 'echo told; sleep 2; exit 1' TERM; echo up; for i in $(seq 1 200); do sleep 0.1; done; echo done"
    run_id = site.submit(site.job(run=shell(script), restarts=1))
    seen: list[str] = []
    for line in site.followed(run_id, "--node", str(node)):
        seen.append(line.partition("] ")[2])
        if seen == ["up"]:
            pod = site.cluster.pods(run_id)[node]
            site.cluster.kind("Pod").delete(name=pod.metadata.name, namespace=site.cluster.namespace)
    assert seen == ["up", "told", "up", "done"]
    status = site.wait(run_id, "succeeded")
    assert [entry["restarts"] for entry in status["nodes"]] == [int(entry == node) for entry in (0, 1)]


def test_the_follower_loses_nothing_while_the_api_server_restarts(site: Site, request: pytest.FixtureRequest):
    restart = option(request, "--e2e-restart-apiserver")
    script = "for i in $(seq 1 1200); do echo $NODE_RANK line $i; sleep 0.05; done"
    run_id = site.submit(site.job(run=shell(script)))
    lines = []
    for line in site.followed(run_id):
        lines.append(line)
        if len(lines) == 300:
            run_option(restart)
    want = {node: [f"{node} line {i}" for i in range(1, 1201)] for node in (0, 1)}
    assert nodes_of("\n".join(lines)) == want
    site.wait(run_id, "succeeded")
    assert nodes_of(site.launch.ok("logs", run_id)) == want


def test_a_lost_machine_is_named_and_repaired(site: Site, request: pytest.FixtureRequest):
    lose = option(request, "--e2e-lose-node")
    restore = request.config.getoption("--e2e-restore-node")
    script = "trap 'exit 0' TERM; echo up; while true; do sleep 0.1; done"
    run_id = site.submit(site.job(run=shell(script)))
    wait_until(lambda: site.launch.ok("logs", run_id).count("] up\n") == 2, "both nodes", PATIENCE_S)
    hosts = [node["host"] for node in site.status(run_id)["nodes"]]
    assert hosts[0] != hosts[1], "the scheduler put both pods on one machine"
    run_option(lose, hosts[1])
    try:
        wait_until(lambda: f"its machine {hosts[1]} is lost" in (site.status(run_id)["reason"] or ""),
                   "status to name the machine", PATIENCE_S)
        time.sleep(20)  # longer than the Job controller waits before it replaces a pod: it does not
        assert site.status(run_id)["nodes"][1]["host"] == hosts[1]
        site.launch.ok("repair", "--yes", run_id)

        def moved() -> bool:
            nodes = site.status(run_id)["nodes"]
            return any(node["node"] == 1 and node["state"] == "running" and node["host"] != hosts[1] for node in nodes)

        wait_until(moved, "the node to run elsewhere", PATIENCE_S)
        job = site.cluster.kind("Job", "batch/v1").get(name=run_id, namespace=site.cluster.namespace)
        assert not job.status.failed
    finally:
        if restore:
            run_option(restore, hosts[1])
    site.launch.ok("cancel", run_id)
    wait_until(lambda: site.cluster.left_of(run_id) == [], "everything to go", PATIENCE_S)
