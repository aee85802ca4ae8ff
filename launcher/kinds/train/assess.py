"""A prepared job, weighed: its estimate, the verdict, and the nearest change that would make it fit."""

from dataclasses import dataclass
from pathlib import Path

from launcher.errors import SpecError
from launcher.job.prepared import Prepared
from launcher.job.profile import Profile
from launcher.kinds.train.limits import Fit, Known, Limits, check_fit, find_limits, find_shape, placement_of
from launcher.kinds.train.remedy import Setup, nearest_change
from trainer.config.job import TrainConfig
from trainer.sizing.estimate import Job, quantised_experts

# What a change may ask for where the profile does not say what the cluster has.
USUAL_GPUS_PER_NODE, USUAL_NODES = 8, 16
NO_CHANGE = "none of batch, ZeRO stage, GPUs, precision, offload and length"


@dataclass(frozen=True)
class Assessment:
    """`setup`: the job as it is, None when its model is not known; `change`: the job as it would fit."""

    known: Known
    limits: Limits
    fit: Fit
    setup: Setup | None = None
    change: Setup | None = None

    def changes(self) -> str:
        """The change as options of the command line."""
        return " ".join(f"--set {key}={value}" for key, value in self.change.sets.items()) if self.change else ""


def assess(prepared: Prepared, train: TrainConfig, gpu_memory: str | None = None) -> Assessment:
    """Weigh a job with its `train:` section. Raises SpecError for a `--gpu-memory` that is no size, and for a mixture
    of experts that is to be quantised, which the trainer refuses."""
    try:
        limits = find_limits(prepared, gpu_memory)
    except ValueError as error:
        raise SpecError(f"--gpu-memory: must be a size such as 80GiB or 85G, not {gpu_memory!r}") from error
    known = find_shape(train, prepared.job_dir)
    if known.experts and train.model.quantization != "none" and not train.model.trust_remote_code:
        what = f"the {known.experts} experts of each layer"
        message, hint = quantised_experts(train.model, str(train.model.path), what)
        raise SpecError(f"train.{message}", hint)
    if known.shape is None:
        return Assessment(known, limits, Fit("cannot tell", (known.source,)))
    card = limits.gpu.size if limits.gpu else None
    job = Job(train, known.shape, placement_of(prepared.job.resources, train), card)
    setup = Setup(job, limits, *_most(prepared.profile, job))
    fit = check_fit(setup.found, limits, on_gpu=job.placement.on_gpu)
    decided = limits.gpu if job.placement.on_gpu else limits.host
    change = nearest_change(setup) if decided and fit.word != "fits" else None
    return Assessment(known, limits, fit, setup, change)


def _most(profile: Profile, job: Job) -> tuple[int, int]:
    """Nodes, and GPUs of a node, that a change may ask for."""
    nodes = profile.max_nodes or (job.placement.nodes if profile.is_one_machine else USUAL_NODES)
    return nodes, profile.gpus_per_node or USUAL_GPUS_PER_NODE


def misfit(path: Path, found: Assessment, more_hint: str) -> SpecError:
    """The error of a job that does not fit, with the nearest change."""
    nearest = f"nearest change that fits: {found.changes() if found.change else NO_CHANGE}"
    return SpecError("\n".join(f"{path}: train: {reason}" for reason in found.fit.reasons), nearest + more_hint)
