"""Pure parts of the Job controller: index lists, failure policy, verdicts."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from .defaults import COMPLETION_INDEX
from .store import Object

Verdict = tuple[str, str]  # reason and message of the Failed condition


@dataclass
class Tally:
    """What the controller remembers about one Job; index None stands for "any"."""

    counted: set[str] = field(default_factory=set)
    dismissed: set[str] = field(default_factory=set)
    completed: set[int] = field(default_factory=set)
    failed_indexes: set[int] = field(default_factory=set)
    failures: Counter[int | None] = field(default_factory=Counter)
    ignored: Counter[int | None] = field(default_factory=Counter)
    retry_at: dict[int | None, float] = field(default_factory=dict)
    succeeded: int = 0
    failed: int = 0
    create_at: float = 0.0
    verdict: Verdict | None = None


def pod_index(pod: Object) -> int | None:
    text = (pod["metadata"].get("labels") or {}).get(COMPLETION_INDEX)
    return None if text is None else int(text)


def format_indexes(indexes: set[int]) -> str:
    """Ranges of three and more are shortened: `0,2,4-7`."""
    runs: list[list[int]] = []
    for index in sorted(indexes):
        if runs and index == runs[-1][-1] + 1:
            runs[-1].append(index)
        else:
            runs.append([index])
    return ",".join(_format_run(run) for run in runs)


def _format_run(run: list[int]) -> str:
    if len(run) == 1:
        return str(run[0])
    return f"{run[0]}{',' if len(run) == 2 else '-'}{run[-1]}"


def failure_action(job: Object, pod: Object) -> tuple[str, str]:
    """The action of the first matching podFailurePolicy rule and its message."""
    policy = job["spec"].get("podFailurePolicy") or {}
    for number, rule in enumerate(policy.get("rules") or []):
        cause = _match_exit_code(rule, pod) or _match_condition(rule, pod)
        if cause:
            return rule["action"], f"{cause} matching {rule['action']} rule at index {number}"
    return "Count", ""


def _match_exit_code(rule: dict[str, Any], pod: Object) -> str | None:
    wanted = rule.get("onExitCodes")
    if not wanted:
        return None
    meta, status = pod["metadata"], pod["status"]
    for container in (
        *status.get("initContainerStatuses", []),
        *status.get("containerStatuses", []),
    ):
        code = container["state"].get("terminated", {}).get("exitCode", 0)
        chosen = wanted.get("containerName") in (None, container["name"])
        if code and chosen and (code in wanted["values"]) == (wanted["operator"] == "In"):
            who = f"Container {container['name']} for pod {meta['namespace']}/{meta['name']}"
            return f"{who} failed with exit code {code}"
    return None


def _match_condition(rule: dict[str, Any], pod: Object) -> str | None:
    for wanted in rule.get("onPodConditions") or []:
        for condition in pod["status"].get("conditions", []):
            same_type = condition["type"] == wanted["type"]
            if same_type and condition["status"] == wanted.get("status", "True"):
                meta = pod["metadata"]
                return f"Pod {meta['namespace']}/{meta['name']} has condition {wanted['type']}"
    return None


def limit_verdict(job: Object, tally: Tally, pods: list[Object]) -> Verdict | None:
    """Why the Job has failed by its limits on failures, if it has."""
    spec = job["spec"]
    limit = spec["backoffLimit"]
    restarts = _restarts(pods) if spec["template"]["spec"]["restartPolicy"] == "OnFailure" else 0
    if tally.failed > limit or (restarts and restarts >= limit):
        return "BackoffLimitExceeded", "Job has reached the specified backoff limit"
    most = spec.get("maxFailedIndexes")
    if most is not None and len(tally.failed_indexes) > most:
        text = "Job has exceeded the specified maximal number of failed indexes"
        return "MaxFailedIndexesExceeded", text
    ended = len(tally.completed) + len(tally.failed_indexes)
    if tally.failed_indexes and ended == spec["completions"]:
        return "FailedIndexes", "Job has failed indexes"
    return None


def _restarts(pods: list[Object]) -> int:
    return sum(status["restartCount"] for pod in pods for status in pod["status"].get("containerStatuses", []))
