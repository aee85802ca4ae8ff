"""Plan -> the Kubernetes objects of a run: an Indexed Job (or a JobSet, when the profile asks for it), a headless
Service, ConfigMaps, a Secret. Pure.

Every index is one node and starts its trainer with the index as node rank; pod 0 is found by its DNS name. When one
pod is lost all of them end and are started again, so no half-dead job is ever left: each spends one restart of its own
index of a Job, or together they spend one restart of a JobSet.
"""

import base64
import re

from launcher.backends.kubernetes.overlay import JobMetadata, PodOverlay, merge
from launcher.backends.kubernetes.pod import (
    CODE_ARCHIVE,
    CONTAINER,
    REPLICATED_JOB,
    RUN_LABEL,
    Object,
    code_parts,
    job_name,
    overlays,
    pod_spec,
)
from launcher.backends.kubernetes.profile import KubernetesProfile
from launcher.errors import SpecError
from launcher.job.payload import STOPPED
from launcher.job.plan import Plan
from launcher.job.rendered import Rendered
from trainer.config.job import UNICODE_BREAKS

SECRET_PLACEHOLDER = "<set by launch submit>"  # noqa: S105  (what stands where a value will be)
UID_PLACEHOLDER = "<uid of the Job>"
MANAGED_LABEL = "app.kubernetes.io/managed-by"
MANAGER = "launch"
KEEP_FINISHED_S = 7 * 24 * 3600
MAX_CONFIG = 1_000_000  # the API takes 1 MiB for all keys of a ConfigMap
MAX_LABEL = 63
RANDOM_SUFFIX = len("-abcde")
API_VERSIONS = {"Job": "batch/v1", "JobSet": "jobset.x-k8s.io/v1alpha2"}


def render_kubernetes(plan: Plan[KubernetesProfile]) -> Rendered:
    """The objects as YAML documents; the Job comes first because the others name it as their owner."""
    import yaml

    text = yaml.dump_all(run_objects(plan), Dumper=_dumper(), sort_keys=False, allow_unicode=True, width=120)
    return Rendered(plan, text, ".yaml")


def run_objects(plan: Plan[KubernetesProfile]) -> list[Object]:
    """The objects in the order in which submit creates them. Raises SpecError for what Kubernetes cannot take."""
    _check(plan)
    is_set = plan.profile.kubernetes_kind == "JobSet"
    objects = [_job_set(plan)] if is_set else [_job(plan), _service(plan)]
    if plan.payload.files:
        objects.append(_object("ConfigMap", _owned(plan, plan.run_id), data=dict(plan.payload.files)))
    for number, part in enumerate(code_parts(plan)):
        code = {f"{CODE_ARCHIVE}.{number}": base64.b64encode(part).decode()}
        objects.append(_object("ConfigMap", _owned(plan, f"{plan.run_id}-code-{number}"), binaryData=code))
    if plan.secrets:
        values = dict.fromkeys(plan.secrets, SECRET_PLACEHOLDER)
        objects.append(_object("Secret", _owned(plan, plan.run_id), type="Opaque", stringData=values))
    return objects


def pod_template(owner: Object) -> Object:
    """The template of a run's pods, from its Job or JobSet."""
    spec: Object = owner["spec"]
    job = spec["replicatedJobs"][0]["template"]["spec"] if "replicatedJobs" in spec else spec
    return dict(job["template"])


def labels(plan: Plan[KubernetesProfile]) -> dict[str, str]:
    """What every object of the run carries."""
    return {
        "app.kubernetes.io/name": CONTAINER,
        "app.kubernetes.io/instance": plan.run_id,
        MANAGED_LABEL: MANAGER,
        RUN_LABEL: plan.run_id,
    }


def _job(plan: Plan[KubernetesProfile]) -> Object:
    spec = {**_indexed(plan, {"backoffLimitPerIndex": plan.restarts, "maxFailedIndexes": 0}),
            "ttlSecondsAfterFinished": KEEP_FINISHED_S, "template": _template(plan)}
    return {"apiVersion": API_VERSIONS["Job"], "kind": "Job", "metadata": _metadata(plan), "spec": spec}


def _job_set(plan: Plan[KubernetesProfile]) -> Object:
    """One replicated job. It fails with its first failed pod (but replaces by itself what a preemption took), and the
    set makes it anew, `restarts` times. The set also makes the Service that gives the pods their names."""
    job = {**_indexed(plan, {"backoffLimit": 0}), "template": _template(plan)}
    give_up = [
        {"name": "wrongConfiguration", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]},
        {"name": "outOfTime", "action": "FailJobSet", "onJobFailureReasons": ["DeadlineExceeded"]},
    ]
    spec = {
        "failurePolicy": {"maxRestarts": plan.restarts, "rules": give_up},
        "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True, "subdomain": plan.run_id},
        "ttlSecondsAfterFinished": KEEP_FINISHED_S,
        "replicatedJobs": [{
            "name": REPLICATED_JOB, "replicas": 1, "template": {"metadata": {"labels": labels(plan)}, "spec": job},
        }],
    }
    return {"apiVersion": API_VERSIONS["JobSet"], "kind": "JobSet", "metadata": _metadata(plan), "spec": spec}


def _indexed(plan: Plan[KubernetesProfile], failures: Object) -> Object:
    limit = {"activeDeadlineSeconds": plan.time_limit_s} if plan.time_limit_s else {}
    return {
        "completions": plan.nodes,
        "parallelism": plan.nodes,
        "completionMode": "Indexed",
        **failures,
        "podFailurePolicy": {"rules": _failure_rules(plan)},
        **limit,
    }


def _template(plan: Plan[KubernetesProfile]) -> Object:
    """A sidecar that never ends would keep the Job from ending, so none is asked for."""
    metadata: Object = {"labels": {**labels(plan), "sidecar.istio.io/inject": "false"}}
    for overlay in overlays(plan):
        metadata = _over(metadata, overlay)
    return {"metadata": metadata, "spec": pod_spec(plan)}


def _metadata(plan: Plan[KubernetesProfile]) -> Object:
    queue = {"kueue.x-k8s.io/queue-name": plan.profile.queue} if plan.profile.queue else {}
    annotations = {"launch/name": plan.name} | ({"launch/code": plan.code_digest} if plan.code_digest else {})
    metadata = {"name": plan.run_id, "namespace": plan.profile.namespace, "labels": labels(plan) | queue,
                "annotations": annotations}
    for overlay in overlays(plan):
        metadata = _over(metadata, overlay.job)
    return metadata


def _over(metadata: Object, overlay: PodOverlay | JobMetadata) -> Object:
    """With the overlay's annotations and labels."""
    given = {"annotations": overlay.annotations, "labels": overlay.labels}
    return merge(metadata, {kind: values for kind, values in given.items() if values})


def _failure_rules(plan: Plan[KubernetesProfile]) -> list[Object]:
    """What would fail again ends the job; a preemption spends no restart. That its peers stopped with it, a node says
    by STOPPED, which counts only of a kind that vouches for it: any other command's would start the pod again for ever.
    """
    def on_exit(action: str, code: int) -> Object:
        return {"action": action, "onExitCodes": {"containerName": CONTAINER, "operator": "In", "values": [code]}}

    codes = plan.payload.exit_codes
    return [
        *(on_exit("FailJob", code) for code in codes.final),
        *([on_exit("Ignore", STOPPED)] if codes.vouched else []),
        {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
    ]


def _service(plan: Plan[KubernetesProfile]) -> Object:
    """Gives the pods their names, also before they are ready: they look for each other while starting."""
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": {"batch.kubernetes.io/job-name": plan.run_id},
    }
    return _object("Service", _owned(plan, plan.run_id), spec=spec)


def _object(kind: str, metadata: Object, **more: object) -> Object:
    return {"apiVersion": "v1", "kind": kind, "metadata": metadata, **more}


def _owned(plan: Plan[KubernetesProfile], name: str) -> Object:
    kind = plan.profile.kubernetes_kind
    owner = {"apiVersion": API_VERSIONS[kind], "kind": kind, "name": plan.run_id, "uid": UID_PLACEHOLDER}
    return {"name": name, "namespace": plan.profile.namespace, "labels": labels(plan), "ownerReferences": [owner]}


def _check(plan: Plan[KubernetesProfile]) -> None:
    if not re.match(r"[a-z]", plan.run_id):
        raise SpecError(f"--run-id: must start with a letter on Kubernetes, not {plan.run_id!r}")
    kind = plan.profile.kubernetes_kind
    last_pod = f"{job_name(kind, plan.run_id)}-{plan.nodes - 1}"
    over = len(last_pod) + (RANDOM_SUFFIX if kind == "JobSet" else 0) - MAX_LABEL
    if over > 0:
        most = len(plan.run_id) - over
        raise SpecError(f"--run-id: must have at most {most} characters for a {kind} of {plan.nodes} "
                        f"nodes, whose pods' names must stay below {MAX_LABEL + 1}, not {plan.run_id!r}",
                        "name the run: launch submit --run-id SHORTER ...")
    size = sum(len(text.encode()) for text in plan.payload.files.values())
    if size > MAX_CONFIG:
        raise SpecError(f"{plan.payload.kind}: has {size:,} bytes; Kubernetes takes {MAX_CONFIG:,}",
                        "put long lists of rows or prompts into files of the code folder")


def _dumper() -> type:
    """PyYAML's safe dumper, without anchors (two equal parts are written twice) and with block text for files. The one
    in C where there is one: megabytes of code would take half a minute."""
    import yaml

    base: type[yaml.SafeDumper] = getattr(yaml, "CSafeDumper", yaml.SafeDumper)

    class Dumper(base):  # type: ignore[misc,valid-type]
        def ignore_aliases(self, data: object) -> bool:
            return True

    def text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
        style = "|" if "\n" in value else None
        if UNICODE_BREAKS.search(value):
            style = '"'
        return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)

    Dumper.add_representer(str, text)
    return Dumper
