"""What there is of runs in one namespace: asked for once, for all who want to know it."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from launcher.backends.kubernetes.client import ApiError, Kube
from launcher.backends.kubernetes.pod import RUN_LABEL, job_name
from launcher.backends.kubernetes.status import as_job, has_ended
from launcher.runs.record import Run

Object = dict[str, Any]

# What a look less old than this says is still news to one who looks at something else of the same run.
FRESH_S = 1.0
TOGETHER = 100  # runs in one selector: their ids stay well below the length that a URL may have


@dataclass(frozen=True)
class Seen:
    """A run's Job (a JobSet in the shape of one; None when it is gone) and its pods. `at`: when they were asked for, on
    the monotonic clock."""

    job: Object | None
    pods: list[Object]
    at: float

    @property
    def is_over(self) -> bool:
        """Whether no pod will come any more."""
        return self.job is None or has_ended(self.job)


class Observer:
    """Looks at the runs of a namespace. All threads share it: while one asks, those that want the same wait for it."""

    def __init__(self, kube: Kube, namespace: str) -> None:
        self.kube = kube
        self.namespace = namespace
        self._lock = threading.Lock()
        self._seen: dict[str, Seen] = {}

    def look(self, run: Run, max_age_s: float = 0.0) -> Seen:
        """One run, as it was at most `max_age_s` ago."""
        return self.look_at([run], max_age_s)[run.run_id]

    def look_at(self, runs: Sequence[Run], max_age_s: float = 0.0) -> dict[str, Seen]:
        """Many runs, by id, with one query for each kind of object."""
        with self._lock:
            newest = time.monotonic() - max_age_s
            wanted = [run for run in runs if run.run_id not in self._seen or self._seen[run.run_id].at <= newest]
            for start in range(0, len(wanted), TOGETHER):
                self._seen |= self._ask(wanted[start:start + TOGETHER])
            return {run.run_id: self._seen[run.run_id] for run in runs}

    def events(self, seen: Seen) -> list[Object]:
        """Events of the Job, and of a pod that hangs before its start; none where they may not be read."""
        if seen.job is None or seen.is_over:
            return []
        hanging = [pod["metadata"]["name"] for pod in seen.pods if pod["status"].get("phase") == "Pending"][:1]
        try:
            return [event for name in [seen.job["metadata"]["name"], *hanging]
                    for event in self.kube.list("Event", self.namespace, fields=f"involvedObject.name={name}")]
        except ApiError as error:
            if error.code == 403:
                return []
            raise

    def _ask(self, runs: Sequence[Run]) -> dict[str, Seen]:
        """The Jobs come first: pods that are listed after a Job's end are all that there will ever be."""
        at = time.monotonic()
        owners = self._owners(runs)
        pods: dict[str, list[Object]] = {run.run_id: [] for run in runs}
        for pod in self.kube.list("Pod", self.namespace, labels=_selector(runs)):
            pods[pod["metadata"]["labels"][RUN_LABEL]].append(pod)
        return {run.run_id: Seen(_job(run, owners), pods[run.run_id], at) for run in runs}

    def _owners(self, runs: Sequence[Run]) -> dict[tuple[str, str], Object]:
        """Jobs and JobSets by kind and name. One run's are got by name, which needs no right to list."""
        names = {name for run in runs for name in _owner_names(run)}
        if len(runs) == 1:
            found = {name: self.kube.get(name[0], self.namespace, name[1]) for name in names}
            return {name: body for name, body in found.items() if body is not None}
        return {(kind, body["metadata"]["name"]): body for kind in sorted({kind for kind, _ in names})
                for body in self.kube.list(kind, self.namespace, labels=_selector(runs))}


def owner_kind(run: Run) -> str:
    """What the run is: a Job or a JobSet."""
    return run.place["kubernetes_kind"]


def _owner_names(run: Run) -> list[tuple[str, str]]:
    """The run's Job, or its JobSet and the Job of that."""
    kind = owner_kind(run)
    return [(kind, run.run_id), *([("Job", job_name(kind, run.run_id))] if kind == "JobSet" else [])]


def _job(run: Run, owners: dict[tuple[str, str], Object]) -> Object | None:
    owner, *children = (owners.get(name) for name in _owner_names(run))
    return as_job(owner, children[0]) if owner and children else owner


def _selector(runs: Sequence[Run]) -> str:
    return f"{RUN_LABEL} in ({','.join(run.run_id for run in runs)})"
