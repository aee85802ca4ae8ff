"""The Job controller: makes, counts and removes the pods of Jobs."""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING

from . import gc
from .api import random_suffix
from .clock import parse_timestamp, timestamp
from .defaults import COMPLETION_INDEX
from .errors import ApiError
from .jobstatus import Tally, failure_action, format_indexes, limit_verdict, pod_index
from .resources import RESOURCES
from .store import Object, controller_uid, has_condition, set_condition

if TYPE_CHECKING:
    from .cluster import FakeCluster

_MAX_BACKOFF_STEPS = 60


class JobController:
    """Looks at every Job when `sync` is called; the caller holds the store's lock."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster
        self._store = cluster.store
        self._tallies: dict[str, Tally] = {}

    def sync(self) -> None:
        for job in self._store.select("jobs"):
            self._sync(job)

    def _sync(self, job: Object) -> None:
        tally = self._tallies.setdefault(job["metadata"]["uid"], Tally())
        before = copy.deepcopy(job.get("status"))
        job.setdefault("status", {})
        self._count_ended(job, tally)
        if is_finished(job):
            self._expire(job)
        elif "deletionTimestamp" not in job["metadata"]:
            self._drive(job, tally)
        self._write_counts(job, tally)
        if job["status"] != before:
            self._store.touch("jobs", job)

    def _pods(self, job: Object) -> list[Object]:
        uid, namespace = job["metadata"]["uid"], job["metadata"]["namespace"]
        return [pod for pod in self._store.select("pods", namespace) if controller_uid(pod) == uid]

    def _live(self, job: Object) -> list[Object]:
        return [pod for pod in self._pods(job) if not gc.is_terminal(pod)]

    def _drive(self, job: Object, tally: Tally) -> None:
        if has_condition(job, "FailureTarget"):
            self._finish_failure(job)
        elif job["spec"]["suspend"]:
            self._suspend(job, tally)
        else:
            self._run(job, tally)

    def _run(self, job: Object, tally: Tally) -> None:
        status = job["status"]
        status.setdefault("startTime", timestamp())
        if has_condition(job, "Suspended"):
            set_condition(job, "Suspended", "False", "JobResumed", "Job resumed")
            self._store.record_event("jobs", job, "Resumed", "Job resumed")
        verdict = tally.verdict or limit_verdict(job, tally, self._pods(job))
        verdict = verdict or self._deadline_verdict(job)
        if verdict:
            set_condition(job, "FailureTarget", "True", *verdict)
            self._delete_active(job)
            self._finish_failure(job)
        elif self._has_succeeded(job, tally):
            self._finish_success(job)
        else:
            self._create_missing(job, tally)

    def _deadline_verdict(self, job: Object) -> tuple[str, str] | None:
        limit = job["spec"].get("activeDeadlineSeconds")
        if limit is None:
            return None
        if time.time() - parse_timestamp(job["status"]["startTime"]) < limit:
            return None
        return "DeadlineExceeded", "Job was active longer than specified deadline"

    def _has_succeeded(self, job: Object, tally: Tally) -> bool:
        if job["spec"]["completionMode"] == "Indexed":
            return len(tally.completed) == job["spec"]["completions"]
        return tally.succeeded >= (job["spec"].get("completions") or 1)

    def _finish_failure(self, job: Object) -> None:
        """Failed follows FailureTarget only when no pod is left running."""
        if self._live(job):
            return
        target = next(c for c in job["status"]["conditions"] if c["type"] == "FailureTarget")
        set_condition(job, "Failed", "True", target["reason"], target["message"])
        self._store.record_event("jobs", job, target["reason"], target["message"], "Warning")

    def _finish_success(self, job: Object) -> None:
        reason, text = "CompletionsReached", "Reached expected number of succeeded pods"
        set_condition(job, "SuccessCriteriaMet", "True", reason, text)
        self._delete_active(job)
        if not self._live(job):
            set_condition(job, "Complete", "True", reason, text)
            job["status"]["completionTime"] = timestamp()
            self._store.record_event("jobs", job, "Completed", "Job completed")

    def _suspend(self, job: Object, tally: Tally) -> None:
        tally.dismissed |= {pod["metadata"]["uid"] for pod in self._live(job)}
        self._delete_active(job)
        job["status"].pop("startTime", None)
        if set_condition(job, "Suspended", "True", "JobSuspended", "Job suspended"):
            self._store.record_event("jobs", job, "Suspended", "Job suspended")

    def _delete_active(self, job: Object) -> None:
        for pod in self._live(job):
            if "deletionTimestamp" not in pod["metadata"]:
                text = f"Deleted pod: {pod['metadata']['name']}"
                self._store.record_event("jobs", job, "SuccessfulDelete", text)
                gc.delete(self._store, "pods", pod, "Background")

    def _expire(self, job: Object) -> None:
        ttl = job["spec"].get("ttlSecondsAfterFinished")
        if ttl is None or "deletionTimestamp" in job["metadata"]:
            return
        ends = [c for c in job["status"]["conditions"] if c["type"] in ("Complete", "Failed")]
        if time.time() - parse_timestamp(ends[0]["lastTransitionTime"]) >= ttl:
            gc.delete(self._store, "jobs", job, "Background")

    def _count_ended(self, job: Object, tally: Tally) -> None:
        for pod in self._pods(job):
            uid = pod["metadata"]["uid"]
            if uid not in tally.counted and self._counts_as_ended(job, pod):
                tally.counted.add(uid)
                if uid not in tally.dismissed:
                    self._count(job, tally, pod)
                gc.drop_finalizer(self._store, "pods", pod, gc.TRACKING)

    def _counts_as_ended(self, job: Object, pod: Object) -> bool:
        """A deleted pod counts at once, unless the Job waits for pods to end."""
        if gc.is_terminal(pod):
            return True
        if "deletionTimestamp" not in pod["metadata"]:
            return False
        if "deletionTimestamp" in job["metadata"] or is_finished(job):
            return gc.pod_has_ended(pod)
        if job["spec"]["podReplacementPolicy"] == "Failed":
            return not pod["spec"].get("nodeName")  # the pod collector ends those; a force delete ends none
        if gc.pod_has_ended(pod):
            return True
        per_index = job["spec"].get("backoffLimitPerIndex") is not None
        return not per_index or self._cluster.nodes.is_lost(pod["spec"]["nodeName"])

    def _count(self, job: Object, tally: Tally, pod: Object) -> None:
        index = pod_index(pod)
        if pod["status"]["phase"] == "Succeeded":
            tally.succeeded += 1
            if index is not None:
                tally.completed.add(index)
            return
        action, message = failure_action(job, pod)
        if action == "Ignore":
            tally.ignored[index] += 1
            tally.retry_at[index] = time.monotonic() + self._cluster.backoff_s
            return
        tally.failed += 1
        tally.failures[index] += 1
        steps = min(2 ** (tally.failures[index] - 1), _MAX_BACKOFF_STEPS)
        tally.retry_at[index] = time.monotonic() + self._cluster.backoff_s * steps
        if action == "FailJob":
            tally.verdict = tally.verdict or ("PodFailurePolicy", message)
        limit = job["spec"].get("backoffLimitPerIndex")
        over_limit = limit is not None and tally.failures[index] > limit
        if index is not None and (action == "FailIndex" or over_limit):
            tally.failed_indexes.add(index)

    def _create_missing(self, job: Object, tally: Tally) -> None:
        now = time.monotonic()
        if now < tally.create_at:
            return
        active = [p for p in self._pods(job) if p["metadata"]["uid"] not in tally.counted]
        room = job["spec"]["parallelism"] - len(active)
        for index in self._wanted(job, tally, active):
            if room <= 0:
                return
            if now >= tally.retry_at.get(index, 0):
                if not self._create_pod(job, tally, index):
                    return
                room -= 1

    def _wanted(self, job: Object, tally: Tally, active: list[Object]) -> list[int | None]:
        completions = job["spec"].get("completions") or 1
        if job["spec"]["completionMode"] != "Indexed":
            return [None] * (completions - tally.succeeded - len(active))
        taken = tally.completed | tally.failed_indexes | {pod_index(pod) for pod in active}
        return [index for index in range(completions) if index not in taken]

    def _create_pod(self, job: Object, tally: Tally, index: int | None) -> bool:
        pod = build_pod(job, index)
        if job["spec"].get("backoffLimitPerIndex") is not None:
            pod["metadata"]["annotations"] |= _counts(tally, index)
        namespace, name = job["metadata"]["namespace"], pod["metadata"]["name"]
        try:
            self._cluster.api.create(RESOURCES["pods"], namespace, pod, {})
        except ApiError as error:
            text = f"Error creating: {error.message}"
            self._store.record_event("jobs", job, "FailedCreate", text, "Warning")
            tally.create_at = time.monotonic() + self._cluster.create_retry_s
            return False
        self._store.record_event("jobs", job, "SuccessfulCreate", f"Created pod: {name}")
        return True

    def _write_counts(self, job: Object, tally: Tally) -> None:
        status, live = job["status"], self._live(job)
        going = [pod for pod in live if "deletionTimestamp" in pod["metadata"]]
        staying = [pod for pod in live if "deletionTimestamp" not in pod["metadata"]]
        indexed = job["spec"]["completionMode"] == "Indexed"
        counts = {
            "active": len(staying),
            "succeeded": len(tally.completed) if indexed else tally.succeeded,
            "failed": tally.failed,
            "completedIndexes": format_indexes(tally.completed),
        }
        for key, value in counts.items():
            status.pop(key, None)
            if value:
                status[key] = value
        status["ready"] = sum(has_condition(pod, "Ready") for pod in staying)
        status["terminating"] = len(going)
        status["uncountedTerminatedPods"] = {}
        if job["spec"].get("backoffLimitPerIndex") is not None:
            status["failedIndexes"] = format_indexes(tally.failed_indexes)


def _counts(tally: Tally, index: int | None) -> dict[str, str]:
    """How often a pod of this index has failed before."""
    found = {"batch.kubernetes.io/job-index-failure-count": str(tally.failures[index])}
    if tally.ignored[index]:
        found["batch.kubernetes.io/job-index-ignored-failure-count"] = str(tally.ignored[index])
    return found


def is_finished(job: Object) -> bool:
    return has_condition(job, "Complete") or has_condition(job, "Failed")


def build_pod(job: Object, index: int | None) -> Object:
    """A pod from the Job's template, for one index where the Job is indexed."""
    meta, template = job["metadata"], copy.deepcopy(job["spec"]["template"])
    pod_meta = template.get("metadata") or {}
    base = meta["name"] if index is None else f"{meta['name']}-{index}"
    pod_meta.update(
        name=f"{base}-{random_suffix()}",
        generateName=f"{base}-",
        namespace=meta["namespace"],
        finalizers=[gc.TRACKING],
        ownerReferences=[_owner(job)],
    )
    if index is not None:
        pod_meta.setdefault("labels", {})[COMPLETION_INDEX] = str(index)
        pod_meta.setdefault("annotations", {})[COMPLETION_INDEX] = str(index)
        template["spec"].setdefault("hostname", base)
        _add_index_variable(template["spec"])
    return {"apiVersion": "v1", "kind": "Pod", "metadata": pod_meta, "spec": template["spec"]}


def _owner(job: Object) -> Object:
    meta = job["metadata"]
    return {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "name": meta["name"],
        "uid": meta["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }


def _add_index_variable(spec: Object) -> None:
    path = f"metadata.labels['{COMPLETION_INDEX}']"
    variable = {"name": "JOB_COMPLETION_INDEX", "valueFrom": {"fieldRef": {"fieldPath": path}}}
    for container in [*(spec.get("initContainers") or []), *spec["containers"]]:
        container.setdefault("env", []).append(variable)
