"""The profile of a Kubernetes cluster. No I/O."""

from collections.abc import Iterable, Iterator
from typing import Any, ClassVar, Literal, Self

from pydantic import Field, model_validator

from launcher.backends.kubernetes.overlay import PodOverlay
from launcher.job.plan import DEFAULT_IMAGE, all_mounts
from launcher.job.profile import CONTAINER_CODE, Problem, Profile
from launcher.job.spec import JobSpec, Mount, mount_at
from launcher.job.types import AbsolutePath, DnsName, EnvValue, Word, is_below
from trainer.config.job import Section

WORKSPACE = "/workspace"  # the working directory of a pod


class Toleration(Section):
    """A taint the pods accept (Kubernetes core/v1 Toleration)."""

    key: str | None = Field(None, description="Key of the taint. Default: every key.")
    operator: Literal["Exists", "Equal"] = Field("Equal", description="Whether the value counts.")
    value: str | None = Field(None, description="Value of the taint.")
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] | None = Field(
        None, description="Effect of the taint. Default: every effect.")
    tolerationSeconds: int | None = Field(  # noqa: N815  (the API's own spelling)
        None, description="Seconds that a NoExecute taint is tolerated. Default: forever.")


class KubernetesProfile(Profile):
    """A Kubernetes cluster: one namespace of it."""

    sends_code: ClassVar[bool] = True
    shares_folder: ClassVar[bool] = False
    job_options: ClassVar[str | None] = "pod"
    code_folders: ClassVar[tuple[str, ...]] = (CONTAINER_CODE, WORKSPACE)

    backend: Literal["kubernetes"] = Field(description="kubernetes.")
    context: str | None = Field(None, min_length=1, description=(
        "Context of the kubeconfig, or `in-cluster`: the service account of the pod that launch runs in. Default: the "
        "current context; in a pod without a kubeconfig, `in-cluster`."))
    namespace: DnsName = Field("default", description="Namespace of the job.")
    kubernetes_kind: Literal["Job", "JobSet"] = Field(
        "Job", description="What a run is there. A Job needs nothing installed; a JobSet is made only when asked for, "
                           "and restarts all pods at once.")
    repair: Literal["ask", "auto"] = Field(
        "ask", description="Whether a follower gives up the pod of a lost machine, so that it is replaced, by itself "
                           "or only names it.")
    queue: Word | None = Field(None, description="Kueue LocalQueue.")
    priority_class: DnsName | None = Field(None, description="PriorityClass of the pods.")
    service_account: DnsName | None = Field(
        None, description="ServiceAccount of the pods; its token is never mounted.")
    image_pull_secrets: list[DnsName] = Field([], description="Secrets that hold registry credentials.")
    image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = Field(
        "IfNotPresent", description="When nodes pull the image.")
    run_as_user: int | None = Field(1000, ge=1, lt=2**31, description="Numeric user and group of the container; null "
                                    "leaves both to the cluster, as OpenShift requires.")
    node_selector: dict[str, str] = Field({}, description="Labels a node must have.")
    tolerations: list[Toleration] = Field([], description="Taints the pods accept.")
    gpu_resource: Word = Field("nvidia.com/gpu", description="Name of the GPU resource.")
    extra_resources: dict[str, EnvValue] = Field({}, description="More resources per node, such as rdma/hca: 1.")
    log_archive: AbsolutePath | None = Field(
        None, description="Folder on one of the profile's mounts where training jobs keep a copy of their logs; what a "
                          "node throws away unread is filled from it.")
    pod: PodOverlay | None = Field(None, description="What is merged into the pods and Jobs of every job.")

    def problems(self, values: dict[str, Any]) -> Iterator[Problem]:
        """Claims are what Kubernetes has; overlays must fit the job."""
        if self.pod is None and not values.get("pod"):
            return
        from launcher.backends.kubernetes.reserved import misfits

        yield from misfits(values, self)

    def notes(self, job: JobSpec, *, code: bool) -> Iterator[str]:
        """A pod's working directory has a copy of the code, unless it is a volume of the user's; containers beside the
        job's own are waited for."""
        mount = mount_at(all_mounts(job, self), WORKSPACE)
        if code and mount is not None:
            where = f"claim {mount.claim}" if mount.claim else f"{mount.host_path} of the node"
            yield (f"code: the job finds it at {CONTAINER_CODE} (read-only, on PYTHONPATH); relative paths start at "
                   f"{WORKSPACE}, which is {where}: launch writes nothing there")
        if job.image is None:
            yield (f"image: {DEFAULT_IMAGE} names no registry, so nodes find it only if it was loaded there; push it "
                   "to one and name it (docs/images.md)")
        if job.resources.gpus_per_node and job.resources.memory_per_node is None:
            yield ("resources.memory_per_node: not set, so the pods reserve no memory, and a node that runs short of "
                   "it evicts them first")
        if overlays := [overlay for overlay in (self.pod, getattr(job, "pod", None)) if overlay]:
            yield from _sidecar_notes(overlays)
            yield from self._capability_notes(overlays)

    def seen_at(self, path: str, job_dir: str) -> str:
        """Relative paths start at a volume of the pod's own."""
        return super().seen_at(path, WORKSPACE)

    def kept(self, mounts: Iterable[Mount], job_dir: str) -> list[str] | None:
        """Mounts alone outlive a pod."""
        return [mount.path for mount in mounts]

    def _capability_notes(self, overlays: Iterable[PodOverlay]) -> Iterator[str]:
        """Kubernetes grants no ambient capabilities."""
        contexts = [item.get("securityContext") or {} for overlay in overlays
                    for item in overlay.spec.get("containers", [])]
        if self.run_as_user is not None and any((context.get("capabilities") or {}).get("add") for context in contexts):
            yield (f"pod.containers: capabilities that are added have no effect on user {self.run_as_user} "
                   "(run_as_user), only on root; locked memory is a limit of the nodes' container runtime "
                   "(k8s/README.md)")

    @model_validator(mode="after")
    def _archive_on_a_mount(self) -> Self:
        if self.log_archive is None:
            return self
        paths = [mount.path for mount in self.mounts if not mount.read_only]
        odd = ".." in self.log_archive.split("/") or "$" in self.log_archive
        if odd or not any(is_below(self.log_archive, path) for path in paths):
            raise ValueError(f"log_archive: must be a folder below one of the profile's "
                             f"writable mounts ({', '.join(paths) or 'there are none'}), not {self.log_archive!r}")
        return self


def _sidecar_notes(overlays: Iterable[PodOverlay]) -> Iterator[str]:
    """A pod has not ended before all of its containers have."""
    from launcher.backends.kubernetes.pod import CONTAINER

    names = dict.fromkeys(item["name"] for overlay in overlays for item in overlay.spec.get("containers", []))
    if beside := [name for name in names if name != CONTAINER]:
        yield (f"pod.containers: the run ends only when {' and '.join(beside)} ends, too; a sidecar that Kubernetes is "
               "to end is an item of initContainers with restartPolicy: Always")
