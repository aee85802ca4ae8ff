"""What a Job or JobSet, its pods and their events say, in the words that all back ends use. Pure."""

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from launcher.backends.kubernetes.pod import CONTAINER, RUN_LABEL, UNPACKER
from launcher.runs.status import JobStatus, NodeStatus, State, exit_words

Object = Mapping[str, Any]

INDEX = "batch.kubernetes.io/job-completion-index"
FAILURES = ("batch.kubernetes.io/job-index-failure-count", "batch.kubernetes.io/job-index-ignored-failure-count")
# How often a JobSet has made all of its Jobs anew.
SET_RESTARTS = "jobset.sigs.k8s.io/restart-attempt"
UNKNOWN_END = "no pod says why; see launch logs"


def job_status(job: Object, pods: Iterable[dict[str, Any]], events: Iterable[Object],
               meanings: Mapping[str, str]) -> JobStatus:
    """How a run is. `pods` may hold several attempts of a node; the newest counts. `meanings`: of exit codes."""
    events = list(events)
    attempts = by_node(pods)
    nodes = tuple(_node_status(node, attempts[node], events, meanings) for node in sorted(attempts))
    if condition := _condition(job, "Complete"):
        return JobStatus(State.SUCCEEDED, None, 0, nodes, condition.get("lastTransitionTime"))
    code, reason = _why_failed(attempts, meanings)
    if condition := _condition(job, "Failed"):
        return JobStatus(State.FAILED, _failure(condition, reason), code, nodes, condition.get("lastTransitionTime"))
    if condition := _condition(job, "FailureTarget"):
        reason = f"failing, and its other nodes are being stopped: {_failure(condition, reason)}"
        return JobStatus(State.RUNNING, reason, None, nodes)
    return JobStatus(_active_state(nodes), _why_waiting(job, nodes, events), None, nodes)


def as_job(job_set: Object, job: Object | None) -> dict[str, Any]:
    """A JobSet as if it were its one Job, which is gone for a moment when it is made anew. The set says whether it is
    all over, the Job why."""
    child: Object = job or {}
    kept = [item for item in _conditions(child) if item["type"] not in ("Complete", "Failed", "FailureTarget")]
    if completed := _condition(job_set, "Completed"):
        kept.append({**completed, "type": "Complete"})
    if failed := _condition(job_set, "Failed"):
        kept.append(_condition(child, "Failed") or failed)
    template = job_set["spec"]["replicatedJobs"][0]["template"]
    name = child.get("metadata", job_set["metadata"])["name"]
    return {"metadata": {**job_set["metadata"], "name": name}, "spec": template["spec"], "status": {"conditions": kept}}


def has_ended(owner: Object) -> bool:
    """Whether the Job or JobSet is over and all its pods have ended."""
    return any(_condition(owner, kind) for kind in ("Complete", "Completed", "Failed"))


def by_node(pods: Iterable[dict[str, Any]]) -> dict[int, list[dict[str, Any]]]:
    """The pods of each node, oldest first."""
    found: dict[int, list[dict[str, Any]]] = {}
    for pod in sorted(pods, key=lambda pod: (pod["metadata"]["creationTimestamp"], pod["metadata"]["name"])):
        found.setdefault(node_of(pod), []).append(pod)
    return found


def node_of(pod: Object) -> int:
    """The pod's completion index."""
    return int(pod["metadata"]["labels"][INDEX])


def container_status(pod: Object) -> Object:
    """The status of the trainer's container; empty before the node knows of it."""
    statuses = pod.get("status", {}).get("containerStatuses") or []
    return next((status for status in statuses if status["name"] == CONTAINER), {})


def terminated(pod: Object) -> Object | None:
    """How the trainer's container ended, if it did, or the init container that kept it from being started."""
    status = failed_init(pod) or container_status(pod)
    found: Object | None = status.get("state", {}).get("terminated")
    return found


def failed_init(pod: Object) -> Object | None:
    """The status of the init container that failed, if one did; the trainer's container is not started then."""
    ended = ((status, status.get("state", {}).get("terminated")) for status in _init_statuses(pod))
    return next((status for status, end in ended if end and end["exitCode"]), None)


def _init_statuses(pod: Object) -> list[Object]:
    """Of the init containers, until the trainer's is started: after that only sidecars among them have news."""
    if container_status(pod).get("state", {}).keys() & {"running", "terminated"}:
        return []
    return pod.get("status", {}).get("initContainerStatuses") or []


def pod_ended(pod: Object) -> bool:
    """Whether nothing more will come from it."""
    return pod["status"].get("phase") in ("Succeeded", "Failed") or terminated(pod) is not None


def is_silent(pod: Object) -> bool:
    """Whether its machine does not answer any more. The node controller then says that the pod is not ready, while the
    container is as the machine has last described it; a machine that answers would change both."""
    ready = next((item for item in _conditions(pod) if item["type"] == "Ready"), {})
    return ready.get("status") == "False" and bool(container_status(pod).get("ready")) and not pod_ended(pod)


def _active_state(nodes: Iterable[NodeStatus]) -> State:
    return State.RUNNING if any(node.state is not State.PENDING for node in nodes) else State.PENDING


def _why_waiting(job: Object, nodes: tuple[NodeStatus, ...], events: list[Object]) -> str | None:
    wanted = job["spec"].get("completions", 1)
    if "deletionTimestamp" in job["metadata"]:
        return "being deleted"
    if _condition(job, "Suspended"):
        return "suspended, waiting for admission by its queue"
    refused = _event(events, job["metadata"]["name"], "FailedCreate")
    if refused and len(nodes) < wanted:
        return f"{wanted - len(nodes)} of {wanted} pods could not be created: {_refusal(refused)}"
    if trouble := _trouble(nodes):
        return trouble
    return None if len(nodes) >= wanted else f"{wanted - len(nodes)} of {wanted} pods have not been created yet"


def _trouble(nodes: tuple[NodeStatus, ...]) -> str | None:
    """A machine that is lost keeps all others waiting, so it comes first."""
    for state in (State.RUNNING, State.PENDING):
        found = [node for node in nodes if node.state is state and node.reason]
        if found:
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            return f"node {found[0].node}: {found[0].reason}{more}"
    again = next((node for node in nodes if node.state is State.FAILED), None)
    return f"node {again.node} is being restarted: {again.reason}" if again else None


def _refusal(message: str) -> str:
    """The API server's words on a pod, without the pod's name, which is another one at each try."""
    text = re.sub(r'^(Error creating: )?pods "[^"]*" is forbidden: ', "", message)
    if "violates PodSecurity" in text:
        return f"the namespace's Pod Security level forbids it: {text}"
    if "any security context constraint" in text:
        return f"no security context constraint admits them (OpenShift needs run_as_user: null in the profile): {text}"
    if "exceeded quota" in text:
        return f"it exceeds the namespace's quota: {text}"
    if "must specify" in text:
        return f"the namespace's quota requires these to be set (resources.cpus_per_node, memory_per_node): {text}"
    return text


def _node_status(node: int, attempts: Sequence[Object], events: list[Object],
                 meanings: Mapping[str, str]) -> NodeStatus:
    pod = attempts[-1]
    ended = terminated(pod)
    annotations = pod["metadata"].get("annotations") or {}
    failures = sum(int(annotations.get(name, 0)) for name in FAILURES)
    restarts = max(failures, len(attempts) - 1) + int(pod["metadata"]["labels"].get(SET_RESTARTS, 0))
    return NodeStatus(node, _pod_state(pod), pod["spec"].get("nodeName"), ended["exitCode"] if ended else None,
                      pod_reason(pod, events, meanings), restarts)


def _pod_state(pod: Object) -> State:
    phase = pod["status"].get("phase")
    known = {"Pending": State.PENDING, "Running": State.RUNNING, "Succeeded": State.SUCCEEDED, "Failed": State.FAILED}
    return known.get(str(phase), State.UNKNOWN)


def pod_reason(pod: Object, events: list[Object], meanings: Mapping[str, str]) -> str | None:
    """Why a pod waits or how it ended; None when there is nothing to say."""
    return _disrupted(pod) or _ended(pod, meanings) or _unscheduled(pod) or _held_up(pod, events)


def _disrupted(pod: Object) -> str | None:
    status = pod["status"]
    disruption = _condition(pod, "DisruptionTarget")
    if is_silent(pod):
        host, run_id = pod["spec"].get("nodeName"), pod["metadata"]["labels"].get(RUN_LABEL, "")
        if "deletionTimestamp" in pod["metadata"]:
            return f"its machine {host} is lost; if it does not come back: launch repair {run_id}".rstrip()
        return f"its machine {host} does not answer"
    if disruption:
        return f"evicted: {disruption.get('message') or disruption.get('reason')}"
    if status.get("reason") == "Evicted":
        return f"evicted: {status.get('message')}"
    return None


def _ended(pod: Object, meanings: Mapping[str, str]) -> str | None:
    ended, failed = terminated(pod), failed_init(pod)
    if ended is None:
        return None
    words = _end_words(pod, ended, meanings)
    if failed is None:
        return words or _failed_beside(pod)
    if failed["name"] == UNPACKER:
        return f"its code could not be unpacked (the image needs sh, tar and gzip): {words}"
    return f"its init container {failed['name']} failed: {words}"


def _failed_beside(pod: Object) -> str | None:
    """Of a pod that failed though the trainer's container ended well: the container beside it that did not."""
    statuses = pod["status"].get("containerStatuses", []) if pod["status"].get("phase") == "Failed" else []
    ends = ((status["name"], status.get("state", {}).get("terminated")) for status in statuses)
    return next((f"its container {name} failed: {_end_words(pod, end, {})}" for name, end in ends
                 if end and end["exitCode"]), None)


def _end_words(pod: Object, ended: Object, meanings: Mapping[str, str]) -> str | None:
    reason, code = ended.get("reason"), ended["exitCode"]
    if reason == "OOMKilled":
        limit = _limit(pod, "memory")
        return f"out of memory ({f'the limit is {limit}' if limit else 'of the machine'}), exit code {code}"
    if reason == "StartError":
        return f"the command could not be started: {_said(ended)}"
    if code == 0:
        return None
    last = _said(ended)
    return exit_words(code, meanings) + (f": {last}" if last else "")


def _unscheduled(pod: Object) -> str | None:
    found = next((item for item in _conditions(pod) if item["type"] == "PodScheduled"), None)
    if found is None or found["status"] != "False":
        return None
    message = str(found.get("message", "")).partition(" preemption:")[0]
    short = re.search(r"Insufficient ([\w./-]*\w)", message)
    busy = "No preemption victims" in str(found.get("message"))
    if short and busy:
        return f"no node has enough {short[1]} free now: {message}"
    return f"no node has enough {short[1]}: {message}" if short else f"no node fits: {message}"


def _held_up(pod: Object, events: list[Object]) -> str | None:
    waiting = _waiting(pod)
    reason, message = waiting.get("reason"), waiting.get("message") or ""
    if reason in ("ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull"):
        return f"image {pod['spec']['containers'][0]['image']} cannot be pulled ({reason}): {message}"
    if reason == "CreateContainerConfigError":
        return f"its environment refers to something that does not exist: {message}"
    if reason == "ContainerCreating" or pod["status"].get("phase") == "Pending":
        mount = _event(events, pod["metadata"]["name"], "FailedMount")
        return f"a volume cannot be mounted: {mount}" if mount else "creating the container"
    return f"{reason}: {message}" if reason else None


def _waiting(pod: Object) -> Object:
    """What the container that comes next waits for; the trainer's, while init containers are at work, waits for them
    only (PodInitializing)."""
    found = (status.get("state", {}).get("waiting") or {} for status in [*_init_statuses(pod), container_status(pod)])
    return next((waiting for waiting in found if waiting and waiting.get("reason") != "PodInitializing"), {})


def _why_failed(attempts: Mapping[int, Sequence[Object]],
                meanings: Mapping[str, str]) -> tuple[int | None, str | None]:
    """Exit code and reason of the node that failed first in the last attempt: its peers only lost their connection."""
    failed = []
    for node, pods in attempts.items():
        ended = terminated(pods[-1])
        if pods[-1]["status"].get("phase") == "Failed":
            code = ended["exitCode"] if ended else None
            when = str(ended.get("finishedAt")) if ended else ""
            failed.append((code != 78, when, code in (1, 137, 143), node, code))
    if not failed:
        return None, None
    *_, node, code = min(failed, key=lambda found: found[:4])
    return code, f"node {node}: {pod_reason(attempts[node][-1], [], meanings) or UNKNOWN_END}"


def _failure(condition: Object, reason: str | None) -> str:
    why, message = condition.get("reason"), condition.get("message")
    if why == "DeadlineExceeded":
        return "the time limit was reached (resources.time_limit)"
    if reason:
        return reason
    return f"{why}: {message}; {UNKNOWN_END}"


def _conditions(obj: Object) -> list[Object]:
    return obj.get("status", {}).get("conditions") or []


def _condition(obj: Object, kind: str) -> Object | None:
    return next((item for item in _conditions(obj) if item["type"] == kind and item["status"] == "True"), None)


def _event(events: list[Object], name: str, reason: str) -> str | None:
    """The message of the newest event about an object."""
    found = [event for event in events if event["involvedObject"].get("name") == name and event.get("reason") == reason]
    found.sort(key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")
    return str(found[-1].get("message")) if found else None


def _limit(pod: Object, resource: str) -> str | None:
    limit = pod["spec"]["containers"][0].get("resources", {}).get("limits", {}).get(resource)
    return str(limit) if limit else None


def _said(ended: Object) -> str:
    """The line of the container's last words that says most: the first error (what follows an error of a rank is
    torchrun's own), else the last line with a word in it."""
    lines = [line.strip() for line in str(ended.get("message") or "").splitlines() if re.search(r"\w", line)]
    errors = [line for line in lines if re.search(r"\b\w*([Ee]rror|Exception): \S", line)]
    return (errors[:1] or lines[-1:] or [""])[0]
