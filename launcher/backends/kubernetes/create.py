"""Sending a run's objects: all of them or none."""

import copy
from typing import Any

from launcher.backends.kubernetes.client import ApiError, Kube
from launcher.backends.kubernetes.objects import pod_template
from launcher.backends.kubernetes.pod import job_name
from launcher.backends.kubernetes.status import INDEX
from launcher.errors import BackendError

Object = dict[str, Any]

# What admission says about a pod -> plain words, and what to do. {0} is the namespace.
_POD_REFUSALS = (
    ("violates PodSecurity", "the Pod Security level of namespace {0!r} forbids the job's pods",
     "mounts with host_path (use a claim) and what `pod` adds are the usual reasons"),
    ("any security context constraint",
     "no security context constraint of OpenShift admits the job's pods in namespace {0!r}",
     "set run_as_user: null in the profile, so that the namespace's own user is used"),
    ("exceeded quota", "the quota of namespace {0!r} has no room for one pod of the job",
     "see what is used: kubectl -n {0} describe quota"),
    ("must specify", "the quota of namespace {0!r} requires limits", "set resources.cpus_per_node and memory_per_node"),
    ("service account", "namespace {0!r} does not have the profile's service_account",
     "see which it has: kubectl -n {0} get serviceaccounts"),
    ("PriorityClass", "the cluster does not have the profile's priority_class",
     "see which it has: kubectl get priorityclasses"),
)


def load_objects(text: str) -> list[Object]:
    """The objects of a render."""
    import yaml

    return list(yaml.load_all(text, getattr(yaml, "CSafeLoader", yaml.SafeLoader)))


def check_objects(kube: Kube, objects: list[Object]) -> None:
    """A dry run of every object, and of a pod: only a pod meets quotas, Pod Security and accounts."""
    for body in objects:
        _create(kube, body, dry_run=True)
    try:
        kube.create(_pod(objects[0]), dry_run=True)
    except ApiError as error:
        # who may not make pods by hand cannot ask; the Job's own pods are another matter
        if not (error.code == 403 and " cannot create resource " in error.message):
            raise _refused_pod(error, objects[0]["metadata"]["namespace"]) from error


def create_objects(kube: Kube, objects: list[Object], secrets: dict[str, str]) -> str:
    """The Job or JobSet, whose uid is returned, then what it owns. Whatever goes wrong on the way, Ctrl-C too: what was
    made is deleted."""
    owner, uid = objects[0], None
    try:
        uid = str(_create(kube, owner)["metadata"]["uid"])
        for body in objects[1:]:
            _create(kube, filled(body, uid, secrets))
        return uid
    except BaseException as error:
        if uid or not isinstance(error, ApiError) or error.passing:  # else it was refused, and nothing was made
            _undo(kube, owner, uid, error)
        raise


def filled(body: Object, uid: str, secrets: dict[str, str]) -> Object:
    """A rendered object with its two placeholders replaced: the owner's uid, and the values of secrets."""
    found = copy.deepcopy(body)
    for owner in found["metadata"]["ownerReferences"]:
        owner["uid"] = uid
    if found["kind"] == "Secret":
        found["stringData"] = {name: secrets[name] for name in found["stringData"]}
    return found


def _undo(kube: Kube, owner: Object, uid: str | None, cause: BaseException) -> None:
    """Delete the owner; the cluster collects what it owns, also what arrives late. Without `uid` its creation was never
    answered: what is there is deleted only when this client made it."""
    kind, meta = owner["kind"], owner["metadata"]
    try:
        if uid := uid or kube.uid_of_own(kind, meta["namespace"], meta["name"]):
            kube.delete(kind, meta["namespace"], meta["name"], propagation="Background", uid=uid)
    except BackendError:
        if isinstance(cause, BackendError):
            cause.hint = ("the cluster did not answer when cleaning up; later, if it is yours: "
                          f"{kube.kubectl} -n {meta['namespace']} delete {kind}/{meta['name']}")


def _create(kube: Kube, body: Object, *, dry_run: bool = False) -> Object:
    try:
        return kube.create(body, dry_run=dry_run)
    except ApiError as error:
        raise _explained(error, body) from error


def _explained(error: ApiError, body: Object) -> ApiError:
    kind, meta = body["kind"], body["metadata"]
    if error.code == 409:
        return ApiError(f"{kind} {meta['name']!r} exists already in namespace {meta['namespace']!r}",
                        f"choose another name: launch submit --run-id {meta['name']}-2", code=409)
    if error.code == 404 and kind == "JobSet":
        return ApiError(f"{error.message} (JobSet)", "install JobSet there (https://jobset.sigs.k8s.io), or take "
                        "kubernetes_kind out of the cluster's profile: a Job needs nothing", code=404)
    if error.hint:
        return error
    return ApiError(f"{kind} {meta['name']!r}: {error.message}", code=error.code)


def _pod(owner: Object) -> Object:
    """The pod of node 0, as the Job or JobSet would make it."""
    meta = owner["metadata"]
    job = job_name(owner["kind"], meta["name"])
    template = pod_template(owner)
    labels = {**template["metadata"]["labels"], INDEX: "0", "batch.kubernetes.io/job-name": job}
    metadata = {"name": f"{job}-0", "namespace": meta["namespace"], "labels": labels}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": template["spec"]}


def _refused_pod(error: ApiError, namespace: str) -> ApiError:
    for part, what, hint in _POD_REFUSALS:
        if part in error.message:
            return ApiError(f"{what.format(namespace)}: {error.message}", hint.format(namespace), code=error.code)
    return error
