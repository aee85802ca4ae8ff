"""The JobSet controller, as far as a set of one replicated job needs it."""

from __future__ import annotations

import copy
import time
from typing import TYPE_CHECKING, Any

from . import gc
from .clock import parse_timestamp
from .jobs import is_finished
from .resources import RESOURCES
from .store import Object, controller_uid, has_condition, set_condition

if TYPE_CHECKING:
    from .cluster import FakeCluster

_PREFIX = "jobset.sigs.k8s.io"
_ATTEMPT = f"{_PREFIX}/restart-attempt"


class JobSetController:
    """Makes the Jobs and the Service of each JobSet, and all Jobs anew when one fails; the caller holds the lock."""

    def __init__(self, cluster: FakeCluster) -> None:
        self._cluster = cluster
        self._store = cluster.store

    def sync(self) -> None:
        for job_set in self._store.select("jobsets"):
            if "deletionTimestamp" in job_set["metadata"]:
                continue
            before = copy.deepcopy(job_set.get("status"))
            status = job_set.setdefault("status", {"restarts": 0, "restartsCountTowardsMax": 0})
            if _is_over(job_set):
                self._expire(job_set)
            else:
                self._drive(job_set)
            if status != before:
                self._store.touch("jobsets", job_set)

    def _drive(self, job_set: Object) -> None:
        jobs = self._jobs(job_set)
        current = [job for job in jobs if job["metadata"]["labels"][_ATTEMPT] == str(job_set["status"]["restarts"])]
        failed = next((job for job in current if has_condition(job, "Failed")), None)
        for job in jobs:
            if job not in current and "deletionTimestamp" not in job["metadata"]:
                gc.delete(self._store, "jobs", job, "Foreground")
        if failed:
            self._handle_failure(job_set, failed)
        elif current and all(has_condition(job, "Complete") for job in current):
            set_condition(job_set, "Completed", "True", "AllJobsCompleted", "jobset completed successfully")
        elif not jobs:
            self._create(job_set)

    def _handle_failure(self, job_set: Object, job: Object) -> None:
        policy, status = job_set["spec"].get("failurePolicy") or {}, job_set["status"]
        reason = next(item["reason"] for item in job["status"]["conditions"] if item["type"] == "Failed")
        action = next((rule["action"] for rule in policy.get("rules") or []
                       if reason in (rule.get("onJobFailureReasons") or [reason])), "RestartJobSet")
        name = job["metadata"]["name"]
        if action == "FailJobSet" or not policy:
            set_condition(job_set, "Failed", "True", "FailedJobs",
                          f"jobset failed due to one or more job failures (first failed job: {name})")
        elif action == "RestartJobSet" and status["restartsCountTowardsMax"] >= policy.get("maxRestarts", 0):
            set_condition(job_set, "Failed", "True", "ReachedMaxRestarts",
                          f"jobset failed due to reaching max number of restarts (first failed job: {name})")
        else:
            status["restarts"] += 1
            status["restartsCountTowardsMax"] += action == "RestartJobSet"

    def _create(self, job_set: Object) -> None:
        meta, spec = job_set["metadata"], job_set["spec"]
        subdomain = (spec.get("network") or {}).get("subdomain") or meta["name"]
        if not self._store.get("services", meta["namespace"], subdomain):
            ports = {"clusterIP": "None", "selector": {f"{_PREFIX}/jobset-name": meta["name"]},
                     "publishNotReadyAddresses": True}
            service = {"metadata": {"name": subdomain, "ownerReferences": [_owner(job_set)]}, "spec": ports}
            self._cluster.api.create(RESOURCES["services"], meta["namespace"], service, {})
        for replicated in spec["replicatedJobs"]:
            for index in range(replicated.get("replicas", 1)):
                job = _build_job(job_set, replicated, index, subdomain)
                self._cluster.api.create(RESOURCES["jobs"], meta["namespace"], job, {})

    def _jobs(self, job_set: Object) -> list[Object]:
        uid = job_set["metadata"]["uid"]
        return [job for job in self._store.select("jobs") if controller_uid(job) == uid]

    def _expire(self, job_set: Object) -> None:
        for job in self._jobs(job_set):
            if not is_finished(job) and "deletionTimestamp" not in job["metadata"]:
                gc.delete(self._store, "jobs", job, "Foreground")
        ttl = job_set["spec"].get("ttlSecondsAfterFinished")
        since = parse_timestamp(job_set["status"]["conditions"][-1]["lastTransitionTime"])
        if ttl is not None and time.time() - since >= ttl:
            gc.delete(self._store, "jobsets", job_set, "Background")


def _is_over(job_set: Object) -> bool:
    return has_condition(job_set, "Completed") or has_condition(job_set, "Failed")


def _build_job(job_set: Object, replicated: dict[str, Any], index: int, subdomain: str) -> Object:
    template = copy.deepcopy(replicated["template"])
    labels = {
        f"{_PREFIX}/jobset-name": job_set["metadata"]["name"],
        f"{_PREFIX}/replicatedjob-name": replicated["name"],
        f"{_PREFIX}/job-index": str(index),
        _ATTEMPT: str(job_set["status"]["restarts"]),
    }
    pod = template["spec"]["template"]
    pod["spec"]["subdomain"] = subdomain
    for meta in (template.setdefault("metadata", {}), pod.setdefault("metadata", {})):
        meta["labels"] = {**(meta.get("labels") or {}), **labels}
    name = f"{job_set['metadata']['name']}-{replicated['name']}-{index}"
    template["metadata"] |= {"name": name, "ownerReferences": [_owner(job_set)]}
    return template


def _owner(job_set: Object) -> Object:
    meta = job_set["metadata"]
    return {"apiVersion": job_set["apiVersion"], "kind": "JobSet", "name": meta["name"], "uid": meta["uid"],
            "controller": True, "blockOwnerDeletion": True}
