"""The pod that reads a file of a run's log archive, made from the run's own pods. Pure."""

from launcher.backends.kubernetes.objects import API_VERSIONS, MANAGED_LABEL, MANAGER, pod_template
from launcher.backends.kubernetes.pod import ARCHIVE_VARIABLE, Object
from launcher.job.types import is_below

DEADLINE_S = 180
AMOUNTS = {"cpu": "500m", "memory": "256Mi"}
# Where it may run and what it may do is as for the job's pods; it lacks the run's label, so that it counts as none.
_KEPT = ("automountServiceAccountToken", "enableServiceLinks", "serviceAccountName", "imagePullSecrets", "nodeSelector",
         "tolerations", "securityContext")


def archive_folder(owner: Object) -> str | None:
    """Where the pods of a Job or JobSet archive their logs, if they do."""
    env = _container(owner)["env"]
    return next((item["value"] for item in env if item["name"] == ARCHIVE_VARIABLE), None)


def reader_pod(owner: Object, name: str, file: str, after: str, before: str) -> Object:
    """A pod that prints what `file` has between two stamps (`-`: from its beginning, to its end), and then ends."""
    meta, container = owner["metadata"], _container(owner)
    mount = max((mount for mount in container["volumeMounts"] if is_below(file, mount["mountPath"])),
                key=lambda mount: len(mount["mountPath"]))
    spec = pod_template(owner)["spec"]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name, "namespace": meta["namespace"],
            "labels": {MANAGED_LABEL: MANAGER, "app.kubernetes.io/name": "log-reader",
                       "app.kubernetes.io/instance": meta["name"], "sidecar.istio.io/inject": "false"},
            "ownerReferences": [{"apiVersion": API_VERSIONS[owner["kind"]], "kind": owner["kind"], "name": meta["name"],
                                 "uid": meta["uid"]}],
        },
        "spec": {
            **{key: spec[key] for key in _KEPT if key in spec},
            "restartPolicy": "Never",
            "activeDeadlineSeconds": DEADLINE_S,
            "terminationGracePeriodSeconds": 1,
            "volumes": [volume for volume in spec["volumes"] if volume["name"] == mount["name"]],
            "containers": [{
                **{key: container[key] for key in ("name", "image", "imagePullPolicy", "securityContext",
                                                   "terminationMessagePolicy") if key in container},
                # -P: its working directory may be a volume that jobs write to
                "command": [container["command"][0], "-P", "-m", "trainer.node.archive", file, after, before],
                "resources": {"requests": AMOUNTS, "limits": dict(AMOUNTS)},
                "volumeMounts": [{**mount, "readOnly": True}],
            }],
        },
    }


def _container(owner: Object) -> Object:
    return dict(pod_template(owner)["spec"]["containers"][0])
