"""What an overlay cannot change of a pod, because launch promises it, and with which setting it is changed. Pure."""

import re
from collections.abc import Iterator
from typing import Any

from launcher.backends.kubernetes.overlay import merge, overlay_problems
from launcher.backends.kubernetes.pod import CONTAINER, TMP, UNPACKER
from launcher.backends.kubernetes.profile import WORKSPACE, KubernetesProfile
from launcher.job.load import Loc
from launcher.job.plan import CONFIG_FOLDER
from launcher.job.profile import CONTAINER_CODE, Problem
from launcher.job.types import is_below, normal

Object = dict[str, Any]

_NAMES = "cannot be set, because the nodes of a run find each other by the names that launch gives them"
_POD = {
    "restartPolicy": "cannot be set, because launch restarts pods through the Job (see restarts)",
    "terminationGracePeriodSeconds": "cannot be set, because the last checkpoint is written in that time (see grace of "
                                     "the profile)",
    "activeDeadlineSeconds": "cannot be set, because the time limit is the Job's (see resources.time_limit)",
    "ephemeralContainers": "cannot be set, because a Job's pods cannot start with one (see kubectl debug)",
    **dict.fromkeys(("subdomain", "hostname", "hostnameOverride", "setHostnameAsFQDN"), _NAMES),
}
_TRAINER = {
    "image": "cannot be set here; set `image` of the job",
    **dict.fromkeys(("command", "args"), "cannot be set, because the job says what is run (see run or train)"),
    "workingDir": f"cannot be set, because relative paths of a job start at {WORKSPACE}",
    **dict.fromkeys(("restartPolicy", "restartPolicyRules"), _POD["restartPolicy"]),
}
_LABELS = ("launch/", "app.kubernetes.io/", "batch.kubernetes.io/", "jobset.sigs.k8s.io/")
_VOLUMES = re.compile(r"config|code|workspace|mount-\d+")
_VARIABLES = re.compile(r"LAUNCH_\w*|NODE_RANK|MASTER_ADDR|MASTER_PORT|PYTHONPATH")
_OURS = (CONFIG_FOLDER, CONTAINER_CODE)


def reserved_fields(overlay: Object) -> Iterator[Problem]:
    """What an overlay sets and may not: (path, message). Takes raw values, and leaves those of a wrong type alone."""
    yield from _metadata(overlay, ())
    yield from _metadata(_mapping(overlay.get("job")), ("job",))
    yield from (((key,), why) for key, why in _POD.items() if key in overlay)
    if overlay.get("automountServiceAccountToken", False) is not False:
        yield ("automountServiceAccountToken",), ("must be false, because no job gets rights in the cluster by itself "
                                                  "(mount a token as a projected volume where one is needed)")
    if overlay.get("dnsPolicy") == "Default":
        yield ("dnsPolicy",), ("must be ClusterFirst, ClusterFirstWithHostNet or None with a dnsConfig, not 'Default', "
                               "because the nodes of a run find each other by the cluster's DNS")
    for key in ("containers", "initContainers", "volumes"):
        if key in overlay and overlay[key] is None:
            yield (key,), "cannot be removed, because launch needs its own"
    yield from _names(overlay)
    yield from _twice(overlay)
    for index, container in _items(overlay, "containers"):
        if container.get("name") == CONTAINER:
            yield from ((("containers", index, *loc), why) for loc, why in _trainer(container))


def misfits(values: Object, profile: KubernetesProfile) -> Iterator[Problem]:
    """Where the overlays of a job and a profile do not go together with the rest: (path, message)."""
    given = profile.pod.spec if profile.pod else {}
    pod = merge({}, given)
    found = [*_gpus(given, profile), *_pod_misfits(pod, values, profile)]
    yield from ((("cluster",), f"pod of its profile: {why}") for why in found)
    own = _mapping(values.get("pod"))
    if not any(True for _ in overlay_problems(own)):  # else it is not fit to be merged
        both = [*_gpus(own, profile), *_pod_misfits(merge(pod, own), values, profile)]
        yield from ((("pod",), why) for why in both if why not in found)


def _gpus(overlay: Object, profile: KubernetesProfile) -> Iterator[str]:
    """Before it is merged: null would take the job's GPUs away, and be gone."""
    amounts = [_mapping(_mapping(container.get("resources")).get(kind)) for kind in ("limits", "requests")
               for _, container in _items(overlay, "containers") if container.get("name") == CONTAINER]
    if any(profile.gpu_resource in given for given in amounts):
        yield (f"the container {CONTAINER}: {profile.gpu_resource} cannot be set here; set resources.gpus_per_node of "
               "the job")


def _pod_misfits(pod: Object, values: Object, profile: KubernetesProfile) -> Iterator[str]:
    if pod.get("hostNetwork") and pod.get("dnsPolicy") == "ClusterFirst":
        yield ("dnsPolicy must be ClusterFirstWithHostNet with hostNetwork: with ClusterFirst such a pod asks its "
               "machine's own DNS, by which the nodes of a run do not find each other")
    volumes = {"tmp", "shm", *(volume.get("name") for _, volume in _items(pod, "volumes"))}
    for key in ("containers", "initContainers"):
        for _, container in _items(pod, key):
            if container["name"] != CONTAINER and not container.get("image"):
                yield f"the container {container['name']} has no image (the job's own is called {CONTAINER})"
            yield from _unrunnable(container, volumes)
    for _, container in _items(pod, "containers"):
        if container["name"] == CONTAINER:
            yield from _trainer_misfits(container, values, profile)


def _unrunnable(container: Object, volumes: set[Any]) -> Iterator[str]:
    """What the API refuses of any container."""
    context = container.get("securityContext") or {}
    if context.get("privileged") and not context.get("allowPrivilegeEscalation"):
        yield f"the container {container['name']}: privileged needs allowPrivilegeEscalation: true beside it"
    for _, mount in _items(container, "volumeMounts"):
        name = mount.get("name")
        if name and name not in volumes and not _VOLUMES.fullmatch(name):
            yield f"the container {container['name']}: volumeMounts has {name}, which is no item of pod.volumes"


def _trainer_misfits(trainer: Object, values: Object, profile: KubernetesProfile) -> Iterator[str]:
    paths = [*(mount.path for mount in profile.mounts), *(mount.get("path") for _, mount in _items(values, "mounts"))]
    known = {normal(path) for path in paths if isinstance(path, str)}
    for _, mount in _items(trainer, "volumeMounts"):
        path = normal(mount["mountPath"])
        if path == WORKSPACE and path not in known:
            yield (f"nothing can be mounted at {WORKSPACE} here, where launch puts a copy of the job's code (see "
                   "mounts of the job)")
        elif not mount.get("name") and path not in known | {TMP, "/dev/shm"}:  # noqa: S108
            yield (f"the mount at {path} must have the name of a volume, because neither the job nor its cluster "
                   "mounts anything there")


def _metadata(overlay: Object, loc: Loc) -> Iterator[Problem]:
    for kind in ("annotations", "labels"):
        for key in _mapping(overlay.get(kind)):
            if str(key).startswith(_LABELS):
                yield (*loc, kind, key), "cannot be set, because launch and Kubernetes find the parts of a run by it"


def _names(overlay: Object) -> Iterator[Problem]:
    """Containers and volumes that would stand in the place of launch's."""
    for key, taken in (("containers", {UNPACKER}), ("initContainers", {UNPACKER, CONTAINER})):
        for index, container in _items(overlay, key):
            if container.get("name") in taken:
                yield (key, index, "name"), f"the name {container['name']} is reserved by launch"
    for index, volume in _items(overlay, "volumes"):
        if _VOLUMES.fullmatch(str(volume.get("name"))):
            yield ("volumes", index, "name"), f"the name {volume['name']} is reserved by launch (see mounts of the job)"


def _twice(overlay: Object) -> Iterator[Problem]:
    """Items of one name: the last would take the others' place without a word."""
    for key in ("containers", "initContainers", "volumes"):
        names: list[Any] = []
        for index, item in _items(overlay, key):
            if item.get("name") in names:
                yield (key, index, "name"), f"{item['name']} is there twice"
            names.append(item.get("name"))


def _trainer(container: Object) -> Iterator[Problem]:
    """The job's own container."""
    yield from (((key,), why) for key, why in _TRAINER.items() if key in container)
    for key in ("env", "resources", "volumeMounts"):
        if key in container and container[key] is None:
            yield (key,), "cannot be removed, because launch needs its own"
    for key, amounts in _mapping(container.get("resources")).items():
        if key in ("limits", "requests") and amounts is None:
            yield ("resources", key), "cannot be removed (see resources of the job)"
    for index, variable in _items(container, "env"):
        if _VARIABLES.fullmatch(str(variable.get("name"))):
            yield ("env", index, "name"), f"cannot be {variable['name']}, which launch sets (see env of the job)"
    for index, mount in _items(container, "volumeMounts"):
        path = mount.get("mountPath")
        if isinstance(path, str) and (ours := _overlapped(path)):
            yield ("volumeMounts", index, "mountPath"), f"{path} overlaps {ours}, where launch puts what the job reads"


def _overlapped(path: str) -> str | None:
    return next((ours for ours in _OURS if is_below(path, ours) or is_below(ours, path)), None)


def _items(values: Object, key: str) -> list[tuple[int, Object]]:
    items = values.get(key)
    return [(index, item) for index, item in enumerate(items if isinstance(items, list) else [])
            if isinstance(item, dict)]


def _mapping(value: Any) -> Object:
    return value if isinstance(value, dict) else {}
