"""What people read about a run, from what a cluster says: objects as measured on a real one."""

from datetime import datetime

import pytest

from launcher.backends.kubernetes.lost_nodes import lost_nodes
from launcher.backends.kubernetes.pod import RUN_LABEL
from launcher.backends.kubernetes.status import INDEX, SET_RESTARTS, as_job, has_ended
from launcher.backends.kubernetes.status import job_status as status_with
from launcher.runs.status import State

JOB = {"metadata": {"name": "demo"}, "spec": {"completions": 2}, "status": {}}


def job_status(job, pods, events):
    """Of a training."""
    return status_with(job, pods, events, {"70": "training diverged", "78": "wrong configuration or data"})


def pod(node: int = 0, born: int = 0, phase: str = "Pending", **status: object) -> dict:
    """A pod of a node; `born` orders its attempts."""
    metadata = {"name": f"demo-{node}-{born}", "labels": {INDEX: str(node), RUN_LABEL: "demo"},
                "creationTimestamp": f"2026-11-24T11:00:{born:02}Z"}
    spec = {"nodeName": f"machine-{node}", "containers": [{"name": "trainer", "image": "img:1"}]}
    return {"metadata": metadata, "spec": spec, "status": {"phase": phase, **status}}


def state(**state: object) -> list[dict]:
    """The status of the trainer's container."""
    return [{"name": "trainer", "state": state}]


def ended(code: int, node: int = 0, born: int = 0, at: int = 0, reason: str = "Error", message: str = "") -> dict:
    """A pod whose container ended."""
    how = {"exitCode": code, "reason": reason, "message": message, "finishedAt": f"2026-11-24T11:01:{at:02}Z"}
    return pod(node, born, "Failed" if code else "Succeeded", containerStatuses=state(terminated=how))


def running(node: int = 0) -> dict:
    """A pod that runs."""
    return pod(node, phase="Running", containerStatuses=state(running={}))


def with_condition(kind: str, **more: str) -> dict:
    """The Job with a condition."""
    return {**JOB, "status": {"conditions": [{"type": kind, "status": "True", **more}]}}


def event(name: str, reason: str, message: str) -> dict:
    """An event about an object."""
    return {"involvedObject": {"name": name}, "reason": reason, "message": message,
            "lastTimestamp": "2026-11-24T11:00:00Z"}


def unschedulable(message: str) -> dict:
    """A pod that fits nowhere."""
    condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": message}
    return pod(conditions=[condition])


def unpacking(phase: str = "Pending", **how: object) -> dict:
    """A pod whose code is being unpacked, as a real kubelet shows it: also after a failure the other only waits."""
    init = [{"name": "unpack-code", "state": how}]
    return pod(phase=phase, initContainerStatuses=init, containerStatuses=state(waiting={"reason": "PodInitializing"}))


WAITING = [
    (unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu. no new claims, preemption: 0/3 "
                   "nodes are available: 3 Preemption is not helpful for scheduling."),
     "node 0: no node has enough nvidia.com/gpu: 0/3 nodes are available: 3 Insufficient nvidia.com/gpu."),
    (unschedulable("0/3 nodes are available: 3 Insufficient nvidia.com/gpu. preemption: 0/3 nodes are available: 3 No "
                   "preemption victims found for incoming pod."), "node 0: no node has enough nvidia.com/gpu free now"),
    (unschedulable('persistentvolumeclaim "missing" not found. not found'),
     'node 0: no node fits: persistentvolumeclaim "missing" not found'),
    (pod(containerStatuses=state(waiting={"reason": "ImagePullBackOff", "message": 'Back-off pulling image "img:1"'})),
     'node 0: image img:1 cannot be pulled (ImagePullBackOff): Back-off pulling image "img:1"'),
    (pod(containerStatuses=state(waiting={"reason": "CreateContainerConfigError", "message": 'secret "s" not found'})),
     'node 0: its environment refers to something that does not exist: secret "s" not found'),
    (pod(containerStatuses=state(waiting={"reason": "ContainerCreating"})), "node 0: creating the container"),
    (unpacking(waiting={"reason": "PodInitializing"}), "node 0: creating the container"),
    (unpacking(running={}), "node 0: creating the container"),
    (unpacking(waiting={"reason": "ImagePullBackOff", "message": 'Back-off pulling image "img:1"'}),
     'node 0: image img:1 cannot be pulled (ImagePullBackOff): Back-off pulling image "img:1"'),
]


@pytest.mark.parametrize(("waiting", "reason"), WAITING)
def test_why_a_pod_waits(waiting, reason):
    status = job_status(JOB, [waiting, running(1)], [])
    assert status.reason.startswith(reason)
    assert (status.state, [node.state for node in status.nodes]) == (State.RUNNING, [State.PENDING, State.RUNNING])


def test_only_an_event_tells_of_a_volume():
    events = [event("demo-0-0", "FailedMount", 'MountVolume.SetUp failed for volume "d" : secret "x" not found')]
    status = job_status(JOB, [pod(containerStatuses=state(waiting={"reason": "ContainerCreating"}))], events)
    assert status.reason.startswith('node 0: a volume cannot be mounted: MountVolume.SetUp failed for volume "d"')
    assert status.state is State.PENDING


REFUSED = [
    ("exceeded quota: q, requested: requests.nvidia.com/gpu=4, used: ..=4", "the namespace's quota: exceeded"),
    ('violates PodSecurity "restricted:latest": allowPrivilegeEscalation != false', "Pod Security level forbids it"),
    ("unable to validate against any security context constraint: [provider restricted-v2: "
     ".spec.securityContext.fsGroup: Invalid value: []int64{1000}]", "OpenShift needs run_as_user: null"),
    ("failed quota: q: must specify limits.memory for: trainer", "quota requires these to be set"),
    ('error looking up service account ns/x: serviceaccount "x" not found', "error looking up service account ns/x"),
]


@pytest.mark.parametrize(("message", "words"), REFUSED)
def test_pods_that_could_not_be_made(message, words):
    events = [event("demo", "FailedCreate", f'Error creating: pods "demo-1-x7k2p" is forbidden: {message}')]
    status = job_status(JOB, [running(0)], events)
    assert status.reason.startswith("1 of 2 pods could not be created: ")
    assert words in status.reason
    assert "x7k2p" not in status.reason


def test_a_suspended_job_waits_for_its_queue():
    assert job_status(with_condition("Suspended"), [], []).reason == "suspended, waiting for admission by its queue"


def silent(node: int, **meta: str) -> dict:
    """A pod on a machine that does not answer: not ready, though its container is as it was."""
    found = running(node)
    found["status"]["containerStatuses"][0]["ready"] = True
    found["status"]["conditions"] = [{"type": "Ready", "status": "False"}]
    found["metadata"] |= {**meta, "uid": f"uid-{node}"}
    return found


LATE = "2026-11-24T11:05:00Z"


def test_a_lost_machine_is_named_with_what_to_do():
    status = job_status(JOB, [running(0), silent(1)], [])
    assert status.reason == "node 1: its machine machine-1 does not answer"
    reason = job_status(JOB, [running(0), silent(1, deletionTimestamp=LATE)], []).reason
    assert reason == "node 1: its machine machine-1 is lost; if it does not come back: launch repair demo"


def test_a_pod_that_is_stopping_is_not_lost_before_its_time():
    until = datetime.fromisoformat(LATE).timestamp()
    stopping = running(0)
    stopping["metadata"] |= {"deletionTimestamp": LATE, "uid": "uid-0"}
    assert lost_nodes([stopping, silent(1)], until + 30) == []
    assert [node.key for node in lost_nodes([stopping, silent(1)], until + 90)] == [("demo-0-0", "uid-0")]
    assert [(node.node, node.host) for node in lost_nodes([silent(1, deletionTimestamp=LATE)], until - 30)] == [
        (1, "machine-1")]
    gone = ended(0)
    gone["metadata"]["deletionTimestamp"] = LATE
    assert lost_nodes([gone], until + 90) == []


NO_TAR = {"exitCode": 127, "reason": "Error", "message": "sh: 1: tar: not found\n", "finishedAt": LATE}
NO_SHELL = {"exitCode": 128, "reason": "StartError", "message": 'exec: "sh": executable file not found in $PATH'}
FAILED = [
    (unpacking("Failed", terminated=NO_TAR), 127, "node 0: its code could not be unpacked (the image needs sh, tar and "
     "gzip): exit code 127 (the command was not found): sh: 1: tar: not found"),
    (unpacking("Failed", terminated=NO_SHELL), 128, "node 0: its code could not be unpacked (the image needs sh, tar "
     'and gzip): the command could not be started: exec: "sh": executable file not found in $PATH'),
    (ended(137, reason="OOMKilled"), 137, "node 0: out of memory (of the machine), exit code 137"),
    (ended(128, reason="StartError", message='exec: "/x": stat /x: no such file or directory'), 128,
     'node 0: the command could not be started: exec: "/x": stat /x: no such file or directory'),
    (ended(70), 70, "node 0: exit code 70 (training diverged)"),
    (ended(1, message="step 3\nValueError: bad\n"), 1, "node 0: exit code 1: ValueError: bad"),
    (ended(1, message="[rank0]: OSError: [Errno 28] full\nFAILED\nChildFailedError: x\n====\n"), 1,
     "node 0: exit code 1: [rank0]: OSError: [Errno 28] full"),
    (ended(3, message="bye\n-----\n"), 3, "node 0: exit code 3: bye"),
    (pod(phase="Failed", reason="Evicted", message='Usage of EmptyDir volume "d" exceeds the limit "20Mi".'), None,
     'node 0: evicted: Usage of EmptyDir volume "d" exceeds the limit "20Mi".'),
]


@pytest.mark.parametrize(("how", "code", "reason"), FAILED)
def test_how_a_job_failed(how, code, reason):
    condition = with_condition("Failed", reason="MaxFailedIndexesExceeded", message="too many")
    status = job_status(condition, [how], [])
    assert (status.state, status.exit_code, status.reason) == (State.FAILED, code, reason)


def test_an_init_container_that_somebody_else_put_there_is_named():
    failed = unpacking("Failed", terminated={"exitCode": 3, "reason": "Error"})
    failed["status"]["initContainerStatuses"][0]["name"] = "mesh"
    status = job_status(with_condition("Failed", reason="FailedIndexes"), [failed], [])
    assert status.reason == "node 0: its init container mesh failed: exit code 3"


def test_a_sidecar_that_was_killed_at_the_end_is_no_failure():
    """Kubernetes counts one among the init containers."""
    done, busy = ended(0), running(1)
    for pod_, how in ((done, {"terminated": {"exitCode": 137}}), (busy, {"waiting": {"reason": "CrashLoopBackOff"}})):
        pod_["status"]["initContainerStatuses"] = [{"name": "mesh", "state": how}]
    nodes = job_status(JOB, [done, busy], []).nodes
    assert [(node.state, node.exit_code, node.reason) for node in nodes] == [
        (State.SUCCEEDED, 0, None), (State.RUNNING, None, None)]


def test_peers_of_the_node_that_failed_first_are_not_blamed():
    pods = [ended(1, 0, at=5, message="Connection closed by peer"), ended(9, 1, at=3, message="out of paper")]
    status = job_status(with_condition("Failed", reason="FailedIndexes"), pods, [])
    assert (status.exit_code, status.reason) == (9, "node 1: exit code 9: out of paper")


def test_wrong_configuration_is_the_reason_whoever_came_first():
    pods = [ended(1, 0, at=1), ended(78, 1, at=3)]
    assert job_status(with_condition("Failed", reason="PodFailurePolicy"), pods, []).exit_code == 78


def test_a_job_that_is_about_to_fail_still_runs():
    status = job_status(with_condition("FailureTarget", reason="FailedIndexes"), [ended(9), running(1)], [])
    assert status.state is State.RUNNING
    assert status.reason == "failing, and its other nodes are being stopped: node 0: exit code 9"


def test_the_newest_attempt_counts_and_the_others_are_restarts():
    pods = [ended(1, 0, born=1), ended(1, 0, born=2), {**running(0)}, running(1)]
    pods[2]["metadata"]["creationTimestamp"] = "2026-11-24T11:00:03Z"
    status = job_status(JOB, pods, [])
    assert [(node.node, node.state, node.restarts) for node in status.nodes] == [
        (0, State.RUNNING, 2), (1, State.RUNNING, 0)]
    assert (status.state, status.reason) == (State.RUNNING, None)


def test_nodes_that_have_no_pod_yet_are_counted():
    assert job_status(JOB, [running(0)], []).reason == "1 of 2 pods have not been created yet"


def job_set(*conditions: dict) -> dict:
    """A JobSet of two nodes."""
    template = {"spec": JOB["spec"]}
    return {"metadata": {"name": "demo"}, "spec": {"replicatedJobs": [{"template": template}]},
            "status": {"conditions": list(conditions)}}


def test_a_job_set_ends_when_it_says_so_and_its_job_says_why():
    failed_job = {**with_condition("Failed", reason="BackoffLimitExceeded", message="limit"),
                  "metadata": {"name": "demo-n-0"}}
    again = running(1)
    again["metadata"]["labels"][SET_RESTARTS] = "2"
    status = job_status(as_job(job_set(), failed_job), [running(0), again], [])
    assert (status.state, [node.restarts for node in status.nodes]) == (State.RUNNING, [0, 2])
    assert not has_ended(job_set())

    over = job_set({"type": "Failed", "status": "True", "reason": "ReachedMaxRestarts", "message": "m"})
    status = job_status(as_job(over, failed_job), [ended(9, 1, message="out of paper")], [])
    assert (status.state, status.exit_code, status.reason) == (State.FAILED, 9, "node 1: exit code 9: out of paper")
    late = {**failed_job, **with_condition("Failed", reason="DeadlineExceeded")}
    assert job_status(as_job(over, late), [], []).reason == "the time limit was reached (resources.time_limit)"
    assert job_status(as_job(over, None), [], []).reason.startswith("ReachedMaxRestarts: m")

    done = job_set({"type": "Completed", "status": "True"})
    assert job_status(as_job(done, None), [], []).state is State.SUCCEEDED
    assert has_ended(over) and has_ended(done)


def test_a_refused_pod_of_a_job_set_is_told_by_its_job():
    events = [event("demo-n-0", "FailedCreate", "exceeded quota: q")]
    view = as_job(job_set(), {"metadata": {"name": "demo-n-0"}, "status": {}})
    assert "the namespace's quota" in job_status(view, [running(0)], events).reason
