"""Containers that an overlay adds, beside a job's own."""

from launcher.runs.status import State
from tests import jobs, k8s_runs


def test_containers_of_an_overlay_run_with_the_job(backend):
    """An init container prepares, the job's own container has the overlay's environment, a third one ends by itself."""
    volume = {"volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}]}
    pod = {"initContainers": [{"name": "first", "image": "i", "command": ["sh", "-c", "echo ready >/tmp/x"], **volume}],
           "containers": [{"name": "beside", "image": "i", "command": ["true"]},
                          {"name": "trainer", "env": [{"name": "WORD", "value": "go"}]}]}
    plan = k8s_runs.plan_of("cat /tmp/x; echo $WORD", resources={"nodes": 1}, pod=pod)
    backend.check(jobs.rendered(plan))
    run = k8s_runs.submit(backend, plan)
    k8s_runs.wait_state(backend, run, State.SUCCEEDED)
    assert k8s_runs.texts(backend, run) == {0: ["ready", "go"]}


def test_a_container_beside_the_trainer_that_fails_is_named(backend):
    pod = {"containers": [{"name": "stats", "image": "i", "command": ["sh", "-c", "exit 3"]}]}
    run = k8s_runs.submit(backend, k8s_runs.plan_of("true", resources={"nodes": 1}, pod=pod))
    status = k8s_runs.wait_state(backend, run, State.FAILED)
    assert "its container stats failed: exit code 3" in status.reason
