"""The parts of the pod that Kubernetes starts for each node of a run. Pure.

Made for the restricted Pod Security standard: no root, no capabilities, a read-only root file system. What must be
written lies on volumes: /tmp (also HOME and every cache), /workspace (the job's working directory) and /dev/shm.

Code is unpacked by an init container into a volume of the pod's own, which the trainer's container can only read.
"""

import re
from collections.abc import Mapping
from typing import Any

from launcher.backends.env import DEFAULT_PORT, container_python_path, job_env
from launcher.backends.kubernetes.overlay import PodOverlay, merge
from launcher.backends.kubernetes.profile import WORKSPACE, KubernetesProfile
from launcher.job.plan import CONFIG_FOLDER, Plan
from launcher.job.profile import CONTAINER_CODE
from launcher.job.spec import mount_at

Object = dict[str, Any]

CONTAINER = "trainer"
UNPACKER = "unpack-code"
RUN_LABEL = "launch/run-id"
# Its parts are code.tar.gz.0, .1, ...: one digit, so that a shell's `.?` has them in order.
CODE_ARCHIVE = "code.tar.gz"
CODE_PART = 1_000_000  # bytes; the API takes 1 MiB for all keys of a ConfigMap
TMP = "/tmp"  # noqa: S108  (an emptyDir of the pod)
ARCHIVE_VARIABLE = "LAUNCH_LOG_ARCHIVE"
INDEX_FIELD = "metadata.labels['batch.kubernetes.io/job-completion-index']"
LOST_NODE_S = 60
EXTRA_GRACE_S = 15  # the trainer gets the whole grace; torchrun and the entrypoint end after it
# The replicated job of a JobSet: its pods are called <run>-n-0-<node>-<5 random letters>.
REPLICATED_JOB = "n"
_LAST = ("volumes", "initContainers", "containers")  # long fields, after what an overlay adds
_UNITS = (("Ti", 2**40), ("Gi", 2**30), ("Mi", 2**20), ("Ki", 2**10))


def pod_spec(plan: Plan[KubernetesProfile]) -> Object:
    """The pod template's spec: launch's own, and the overlays over it."""
    spec = _own_spec(plan)
    for overlay in overlays(plan):
        spec = merge(spec, overlay.spec)
    if spec.get("hostNetwork"):  # the machine's own DNS does not know the pods
        spec.setdefault("dnsPolicy", "ClusterFirstWithHostNet")
    return dict(sorted(spec.items(), key=lambda field: _LAST.index(field[0]) if field[0] in _LAST else -1))


def overlays(plan: Plan[KubernetesProfile]) -> list[PodOverlay]:
    """The profile's and the job's, in the order in which they are merged."""
    return [overlay for overlay in (plan.profile.pod, plan.options) if overlay is not None]


def _own_spec(plan: Plan[KubernetesProfile]) -> Object:
    profile = plan.profile
    spec = {
        "subdomain": plan.run_id,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": plan.grace_s + EXTRA_GRACE_S,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "serviceAccountName": profile.service_account,
        "priorityClassName": profile.priority_class,
        "imagePullSecrets": [{"name": name} for name in profile.image_pull_secrets],
        "nodeSelector": dict(profile.node_selector),
        "tolerations": tolerations(plan),
        "affinity": _spread(plan),
        "securityContext": _pod_security(profile.run_as_user),
        "volumes": [volume for volume, _ in _volumes(plan)],
        "initContainers": [_unpacker(plan)] if plan.code_archive is not None else [],
        "containers": [_trainer(plan)],
    }
    return {key: value for key, value in spec.items() if value not in (None, [], {})}


def job_name(kind: str, run_id: str) -> str:
    """The Job whose pods are the run's nodes: the run itself, or what the JobSet of that name makes."""
    return run_id if kind == "Job" else f"{run_id}-{REPLICATED_JOB}-0"


def code_parts(plan: Plan[KubernetesProfile]) -> list[bytes]:
    """The code archive, cut to what one ConfigMap takes."""
    archive = plan.code_archive or b""
    return [archive[start:start + CODE_PART] for start in range(0, len(archive), CODE_PART)]


def quantity(size: int) -> str:
    """Bytes as a Kubernetes quantity, in the largest unit that divides them."""
    return next((f"{size // unit}{suffix}" for suffix, unit in _UNITS if size % unit == 0), str(size))


def literal(text: str) -> str:
    """`text` so that the kubelet gives it to the container as written: it expands `$(NAME)` and shortens `$$`."""
    return re.sub(r"\$(?=[$(])", "$$", text)


def tolerations(plan: Plan[KubernetesProfile]) -> list[Object]:
    """The profile's, and a short wait on a node that is lost (Kubernetes' own is 300 s)."""
    wait = {"operator": "Exists", "effect": "NoExecute", "tolerationSeconds": LOST_NODE_S}
    lost = [{"key": f"node.kubernetes.io/{what}", **wait} for what in ("not-ready", "unreachable")]
    return [*(taint.model_dump(exclude_none=True) for taint in plan.profile.tolerations), *lost]


def _spread(plan: Plan[KubernetesProfile]) -> Object | None:
    """One pod of a run on each machine. A must with GPUs: `nodes` counts machines, two pods on one would share its
    network cards, and its loss would cost both. A wish without: such jobs are trials, and a cluster for trials may have
    a single machine."""
    if plan.nodes == 1:
        return None
    term = {"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {RUN_LABEL: plan.run_id}}}
    if plan.gpus_per_node:
        return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}
    preferred = [{"weight": 100, "podAffinityTerm": term}]
    return {"podAntiAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": preferred}}


def _pod_security(user: int | None) -> Object:
    """Without a user of ours the cluster chooses one, as OpenShift's security context constraints do."""
    own = {} if user is None else {
        "runAsUser": user, "runAsGroup": user, "fsGroup": user, "fsGroupChangePolicy": "OnRootMismatch"}
    return {
        "runAsNonRoot": True,
        **own,
        "seccompProfile": {"type": "RuntimeDefault"},
    }


def _trainer(plan: Plan[KubernetesProfile]) -> Object:
    what = {**_command(plan), "workingDir": WORKSPACE, "env": _env(plan)}
    return _container(plan, CONTAINER, what, _resources(plan), [mount for _, mount in _volumes(plan)])


def _unpacker(plan: Plan[KubernetesProfile]) -> Object:
    """Puts the code where the job's Python looks for it; also where relative paths lead, as a copy that the job may
    write to, unless that is a volume of the user's. It asks for the pod's own processors and memory, and no GPUs."""
    script = f"cat {CONFIG_FOLDER}/{CODE_ARCHIVE}.? | tar -xzf -"
    mounts: list[Object] = [{"name": "code", "mountPath": CONTAINER_CODE},
                            {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True}]
    if mount_at(plan.mounts, WORKSPACE) is None:
        script += f" && cp -RP . {WORKSPACE}"
        mounts.append({"name": "workspace", "mountPath": WORKSPACE})
    resources = {kind: amounts for kind, given in _resources(plan).items()
                 if (amounts := {name: given[name] for name in ("cpu", "memory") if name in given})}
    what = {"command": ["sh", "-c", script], "workingDir": CONTAINER_CODE}
    return _container(plan, UNPACKER, what, resources, mounts)


def _container(plan: Plan[KubernetesProfile], name: str, what: Object, resources: Object,
               mounts: list[Object]) -> Object:
    container = {
        "name": name,
        "image": plan.image,
        "imagePullPolicy": plan.profile.image_pull_policy,
        **what,
        "resources": resources,
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "volumeMounts": mounts,
    }
    return {key: value for key, value in container.items() if value not in ({}, [])}


def _command(plan: Plan[KubernetesProfile]) -> Object:
    ports = [{"name": name, "containerPort": port} for name, port in plan.payload.ports.items()]
    return {"command": plan.payload.words(f"{CONFIG_FOLDER}/{{}}".format, literal), "ports": ports}


def _env(plan: Plan[KubernetesProfile]) -> list[Object]:
    index = {"name": "NODE_RANK", "valueFrom": {"fieldRef": {"fieldPath": INDEX_FIELD}}}
    plain = [{"name": name, "value": literal(value)} for name, value in _values(plan).items()]
    secrets = [{"name": name, "valueFrom": {"secretKeyRef": {"name": plan.run_id, "key": name}}}
               for name in plan.secrets]
    return [*plain, index, *_log_archive(plan), *secrets]


def _log_archive(plan: Plan[KubernetesProfile]) -> list[Object]:
    """Where the job keeps a copy of its log."""
    if plan.profile.log_archive is None or plan.payload.log_copy is None:
        return []
    folder = f"{plan.profile.log_archive.rstrip('/')}/{plan.run_id}"
    return [{"name": ARCHIVE_VARIABLE, "value": literal(folder)},
            {"name": "LAUNCH_POD_NAME", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]


def _values(plan: Plan[KubernetesProfile]) -> Mapping[str, str]:
    """Plain variables; the user's own win. TORCH_EXTENSIONS_DIR is left to the image, which may hold built ops."""
    meeting = {"MASTER_PORT": str(DEFAULT_PORT)} if plan.payload.rendezvous else {}
    values = {
        "HOME": TMP,
        "HF_HOME": f"{TMP}/.cache/huggingface",
        "TRITON_CACHE_DIR": f"{TMP}/.cache/triton",
        "TORCHINDUCTOR_CACHE_DIR": f"{TMP}/.cache/torchinductor",
        "PYTHONDONTWRITEBYTECODE": "1",
        **meeting,
        **job_env(plan),
    }
    if plan.payload.rendezvous:
        values["MASTER_ADDR"] = f"{job_name(plan.profile.kubernetes_kind, plan.run_id)}-0.{plan.run_id}"
    if plan.code_archive is not None:
        values["PYTHONPATH"] = container_python_path(plan)
    return {name: value for name, value in values.items() if name != "NODE_RANK"}


def _resources(plan: Plan[KubernetesProfile]) -> Object:
    amounts = {
        "cpu": str(plan.cpus_per_node) if plan.cpus_per_node else None,
        "memory": quantity(plan.memory) if plan.memory else None,
        plan.profile.gpu_resource: str(plan.gpus_per_node) if plan.gpus_per_node else None,
        **plan.profile.extra_resources,
    }
    given = {name: amount for name, amount in amounts.items() if amount is not None}
    return {"requests": given, "limits": dict(given)} if given else {}


def _volumes(plan: Plan[KubernetesProfile]) -> list[tuple[Object, Object]]:
    """Each volume with its mount. A mount of the job on one of our paths takes its place."""
    own: list[tuple[str, str, Object]] = [
        ("tmp", TMP, {"emptyDir": {}}),
        ("workspace", WORKSPACE, {"emptyDir": {}}),
        ("shm", "/dev/shm", {"emptyDir": {"medium": "Memory", "sizeLimit": quantity(plan.shm)}}),  # noqa: S108
    ]
    pairs: list[tuple[Object, Object]] = [({"name": name, **source}, {"name": name, "mountPath": path})
                                          for name, path, source in own if mount_at(plan.mounts, path) is None]
    if plan.code_archive is not None:
        pairs.append(({"name": "code", "emptyDir": {}},
                      {"name": "code", "mountPath": CONTAINER_CODE, "readOnly": True}))
    if sources := _config_sources(plan):
        pairs.append(({"name": "config", "projected": {"sources": sources}},
                      {"name": "config", "mountPath": CONFIG_FOLDER, "readOnly": True}))
    return pairs + _job_mounts(plan)


def _config_sources(plan: Plan[KubernetesProfile]) -> list[Object]:
    """The ConfigMaps of the run, all seen in one folder."""
    files = [plan.run_id] if plan.payload.files else []
    names = files + [f"{plan.run_id}-code-{number}" for number in range(len(code_parts(plan)))]
    return [{"configMap": {"name": name}} for name in names]


def _job_mounts(plan: Plan[KubernetesProfile]) -> list[tuple[Object, Object]]:
    pairs = []
    for number, mount in enumerate(plan.mounts):
        name = f"mount-{number}"
        source = ({"persistentVolumeClaim": {"claimName": mount.claim}} if mount.claim
                  else {"hostPath": {"path": mount.host_path, "type": "Directory"}})
        where: Object = {"name": name, "mountPath": mount.path}
        pairs.append(({"name": name, **source}, where | {"readOnly": True} if mount.read_only else where))
    return pairs
