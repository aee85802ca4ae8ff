"""What a cluster or a job adds to the rendered pod and Job. Merged as kubectl merges a patch. Pure.

Mappings are merged key by key; lists of named things item by item; what only grows (tolerations, capabilities, terms of
affinity) is appended; any other list is replaced; null takes a field away.
"""

from collections.abc import Iterable, Iterator
from typing import Any, Self

from pydantic import Field, model_validator

from launcher.job.profile import CONTAINER_CODE
from launcher.job.types import is_below
from trainer.config import Section

Object = dict[str, Any]

TRAINER = "trainer"  # the job's own container
CONFIG_FOLDER = "/etc/launch"
# Lists whose items are merged, and the key that tells them apart.
_KEYS = {"containers": "name", "initContainers": "name", "env": "name", "imagePullSecrets": "name",
         "volumes": "name", "volumeMounts": "mountPath", "resourceClaims": "name", "ports": "containerPort"}
_WHOLE = ("volumes",)  # an item has one source, so it is replaced
_GROWING = ("tolerations", "add", "drop", "requiredDuringSchedulingIgnoredDuringExecution",
            "preferredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms", "topologySpreadConstraints",
            "claims")
# Fields that launch's promises rest on.
_OWN_POD = {
    "restartPolicy": "launch restarts pods through the Job; see restarts",
    "terminationGracePeriodSeconds": "see grace of the cluster's profile",
    "activeDeadlineSeconds": "see resources.time_limit",
    "subdomain": "the nodes of a run find each other by it", "hostname": "the nodes of a run find each other by it",
    "hostnameOverride": "the nodes of a run find each other by it",
    "setHostnameAsFQDN": "the nodes of a run find each other by their host names",
    "automountServiceAccountToken": "launch mounts no token into a job",
    "serviceAccountName": "see service_account of the cluster's profile",
    "metadata": "annotations and labels stand right below pod", "spec": "fields of a PodSpec stand right below pod",
}  # fmt: skip
_OWN_CONTAINER = {
    "image": "see image", "command": "it is what the job runs", "args": "it is what the job runs",
    "workingDir": "relative paths of a job start there", "restartPolicy": "see restarts",
    "terminationMessagePolicy": "launch reads why a container ended",
}
_OWN_ENV = ("NODE_RANK", "MASTER_ADDR", "MASTER_PORT")
_OWN_LABELS = ("launch/", "app.kubernetes.io/", "batch.kubernetes.io/", "jobset.sigs.k8s.io/")
_OWN_NAMES = {"volumes": ("config", "code"), "initContainers": ("unpack-code",)}


class JobMetadata(Section):
    """Of the Job or JobSet itself."""

    annotations: dict[str, str] = Field({}, description="Annotations.")
    labels: dict[str, str] = Field({}, description="Labels, such as kueue.x-k8s.io/priority-class.")


class PodOverlay(Section, extra="allow"):
    """Kubernetes alone: what is merged into the rendered pods. Besides these keys any field of a PodSpec, in the API's
    own spelling: affinity, initContainers, hostNetwork, ... `containers` with the name trainer is the job's own."""

    annotations: dict[str, str] = Field({}, description="Annotations of the pods.")
    labels: dict[str, str] = Field({}, description="Labels of the pods.")
    job: JobMetadata = Field(default_factory=JobMetadata.model_construct, description="Of the Job or JobSet itself.")

    @property
    def fields(self) -> Object:
        """The fields of a PodSpec."""
        return dict(self.model_extra or {})

    @model_validator(mode="after")
    def _possible(self) -> Self:
        from launcher.backends.kubernetes.schema import pod_problems

        known = {key: value for key, value in self.fields.items() if key not in _OWN_POD}
        problems = [f"{key}: cannot be set ({_OWN_POD[key]})" for key in self.fields if key in _OWN_POD]
        problems += [line.removeprefix(".") for line in pod_problems(known, "")] if known else []
        problems += _promises(self) if not problems else []
        if problems:
            raise ValueError("; ".join(line.replace("; ", ", ") for line in problems))
        return self


def _promises(overlay: PodOverlay) -> Iterator[str]:
    """What would break a promise of launch: its names, its paths, its container."""
    for where, labels in (("labels", overlay.labels), ("job.labels", overlay.job.labels)):
        yield from (f"{where}.{name}: cannot be set (launch finds its objects by it)" for name in labels
                    if name.startswith(_OWN_LABELS))
    for key, own in _OWN_NAMES.items():
        names = [item.get("name") for item in overlay.fields.get(key) or []]
        yield from (f"{key}: {name} is launch's own; choose another name" for name in names if name in own)
    for container in overlay.fields.get("containers") or []:
        if container.get("name") == TRAINER:
            yield from _trainers(container)


def _trainers(container: Object) -> Iterator[str]:
    yield from (f"containers.{TRAINER}.{key}: cannot be set ({why})" for key, why in _OWN_CONTAINER.items()
                if key in container)
    for variable in container.get("env") or []:
        name = str(variable.get("name"))
        if name in _OWN_ENV or name.startswith("LAUNCH_"):
            yield f"containers.{TRAINER}.env: {name} is set by launch itself"
    for mount in container.get("volumeMounts") or []:
        path = str(mount.get("mountPath"))
        if any(is_below(own, path) or is_below(path, own) for own in (CONTAINER_CODE, CONFIG_FOLDER)):
            yield f"containers.{TRAINER}.volumeMounts: {path} is where launch puts the job's files"
    for amounts in (container.get("resources") or {}).values():
        if isinstance(amounts, dict):
            yield from (f"containers.{TRAINER}.resources: {name} cannot be set, since launch starts a process for each "
                        "GPU; see resources.gpus_per_node" for name in amounts if name.endswith("/gpu"))


def overlaid(template: Object, overlays: Iterable[PodOverlay]) -> Object:
    """A pod template with overlays merged into it, in this order."""
    for overlay in overlays:
        metadata = {"labels": overlay.labels, "annotations": overlay.annotations}
        template = merged(template, {"metadata": {key: value for key, value in metadata.items() if value},
                                     "spec": overlay.fields})
    spec = template["spec"]
    if spec.get("hostNetwork") and "dnsPolicy" not in spec:  # else names of the cluster are not found
        template = {**template, "spec": {**spec, "dnsPolicy": "ClusterFirstWithHostNet"}}
    return template


def merged(base: Any, patch: Any, key: str = "") -> Any:
    """`patch` over `base`, which stands at `key`."""
    if isinstance(base, dict) and isinstance(patch, dict):
        both = {name: merged(base[name], patch[name], name) if name in base else patch[name] for name in patch}
        return {name: value for name, value in {**base, **both}.items() if value is not None}
    if not (isinstance(base, list) and isinstance(patch, list)):
        return patch
    if key in _GROWING:
        return [*base, *(item for item in patch if item not in base)]
    return _merged_items(base, patch, key) if key in _KEYS else patch


def _merged_items(base: list[Any], patch: list[Any], key: str) -> list[Any]:
    names = {item.get(_KEYS[key]): item for item in patch}
    known = [item.get(_KEYS[key]) for item in base]
    kept = [item if item.get(_KEYS[key]) not in names else
            names[item[_KEYS[key]]] if key in _WHOLE else merged(item, names[item[_KEYS[key]]]) for item in base]
    return [*kept, *(item for item in patch if item.get(_KEYS[key]) not in known)]


def sidecar_note(overlays: Iterable[PodOverlay]) -> str | None:
    """A container beside the job's own keeps the pod alive."""
    names = [item["name"] for overlay in overlays for item in overlay.fields.get("containers") or []
             if item.get("name") != TRAINER]
    if not names:
        return None
    return (f"pod.containers: the run ends only when {', '.join(names)} ended, too; a sidecar that ends with the run "
            "is an item of initContainers with restartPolicy: Always")
