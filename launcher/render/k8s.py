"""Plan -> the Kubernetes objects of a run: an Indexed Job, a headless Service, a ConfigMap, a Secret. Pure.

Every index is one node and starts its trainer with the index as node rank; pod 0 is found by its DNS name. When one
pod is lost all of them end and are started again (each spends one restart of its own index), so no half-dead job
is ever left.
"""

import base64
import io
import re
import tarfile

from launcher.errors import SpecError
from launcher.plan import Plan
from launcher.render.pod import CODE_ARCHIVE, CONTAINER, Object, has_config, pod_spec

SECRET_PLACEHOLDER = "<set by launch submit>"  # noqa: S105  (what stands where a value will be)
UID_PLACEHOLDER = "<uid of the Job>"
RUN_LABEL = "launch/run-id"
KEEP_FINISHED_S = 7 * 24 * 3600
MAX_CONFIG = 1_000_000  # the API takes 1 MiB for all keys of a ConfigMap
PREEMPTED, CONFIG = 75, 78


def render_k8s(plan: Plan) -> str:
    """The objects as YAML documents; the Job comes first because the others name it as their owner."""
    import yaml

    return yaml.dump_all(k8s_objects(plan), Dumper=_dumper(), sort_keys=False, allow_unicode=True, width=120)


def k8s_objects(plan: Plan) -> list[Object]:
    """The objects in the order in which submit creates them. Raises SpecError for what Kubernetes cannot take."""
    if not re.match(r"[a-z]", plan.run_id):
        raise SpecError(f"--run-id: got {plan.run_id!r}, allowed on Kubernetes: one that starts with a letter")
    objects = [_job(plan), _service(plan)]
    if has_config(plan):
        objects.append(_config_map(plan))
    if plan.secrets:
        objects.append(_secret(plan))
    return objects


def labels(plan: Plan) -> dict[str, str]:
    """What every object of the run carries."""
    return {
        "app.kubernetes.io/name": CONTAINER,
        "app.kubernetes.io/instance": plan.run_id,
        "app.kubernetes.io/managed-by": "launch",
        RUN_LABEL: plan.run_id,
    }


def _job(plan: Plan) -> Object:
    queue = {"kueue.x-k8s.io/queue-name": plan.profile.queue} if plan.profile.queue else {}
    annotations = {"launch/name": plan.name} | ({"launch/code": plan.code_digest} if plan.code_digest else {})
    spec: Object = {
        "completions": plan.nodes,
        "parallelism": plan.nodes,
        "completionMode": "Indexed",
        "backoffLimitPerIndex": plan.restarts,
        "maxFailedIndexes": 0,
        "podFailurePolicy": {"rules": _failure_rules()},
        "ttlSecondsAfterFinished": KEEP_FINISHED_S,
    }
    if plan.time_limit_s:
        spec["activeDeadlineSeconds"] = plan.time_limit_s
    spec["template"] = {"metadata": {"labels": labels(plan)}, "spec": pod_spec(plan)}
    metadata = {"name": plan.run_id, "namespace": plan.profile.namespace, "labels": labels(plan) | queue,
                "annotations": annotations}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": spec}


def _failure_rules() -> list[Object]:
    """A wrong configuration ends the job; a pre-emption spends no restart."""
    def on_exit(code: int) -> Object:
        return {"containerName": CONTAINER, "operator": "In", "values": [code]}

    return [
        {"action": "FailJob", "onExitCodes": on_exit(CONFIG)},
        {"action": "Ignore", "onExitCodes": on_exit(PREEMPTED)},
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]


def _service(plan: Plan) -> Object:
    """Gives the pods their names, also before they are ready: they look for each other while starting."""
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"batch.kubernetes.io/job-name": plan.run_id},
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": _owned(plan), "spec": spec}


def _config_map(plan: Plan) -> Object:
    found: Object = {"apiVersion": "v1", "kind": "ConfigMap", "metadata": _owned(plan)}
    if plan.train_yaml is not None:
        found["data"] = {"train.yaml": plan.train_yaml}
    if plan.code_archive is not None:
        code = base64.b64encode(plan.code_archive).decode()
        _check_size(plan.code_archive, len(code) + len((plan.train_yaml or "").encode()))
        found["binaryData"] = {CODE_ARCHIVE: code}
    return found


def _secret(plan: Plan) -> Object:
    values = dict.fromkeys(plan.secrets, SECRET_PLACEHOLDER)
    return {"apiVersion": "v1", "kind": "Secret", "metadata": _owned(plan), "type": "Opaque", "stringData": values}


def _owned(plan: Plan) -> Object:
    owner = {"apiVersion": "batch/v1", "kind": "Job", "name": plan.run_id, "uid": UID_PLACEHOLDER}
    return {"name": plan.run_id, "namespace": plan.profile.namespace, "labels": labels(plan),
            "ownerReferences": [owner]}


def _check_size(archive: bytes, total: int) -> None:
    if total <= MAX_CONFIG:
        return
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        biggest = sorted(((member.size, member.name) for member in tar), reverse=True)[:5]
    listed = "\n".join(f"  {size / 2**20:8.2f} MiB  {name}" for size, name in biggest)
    raise SpecError(f"code: got {total:,} bytes packed, allowed on Kubernetes: {MAX_CONFIG:,} (code travels in a "
                    f"ConfigMap); the largest files:\n{listed}",
                    "leave data out in .launchignore and mount it (mounts:), or put the code into the image")


def _dumper() -> type:
    """PyYAML's safe dumper, without anchors (two equal parts are written twice) and with block text for files."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: object) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = "|" if "\n" in value else None
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return Dumper
