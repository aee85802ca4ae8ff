"""Options of sbatch that a cluster or a job asks for. No I/O."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from launcher.job.types import Word, single_line
from trainer.config.job import Section

# What launch writes itself or relies on -> what to use instead. sbatch takes an unfinished name, too.
OWN = {
    "job-name": "a run is called after `name` and --run-id",
    "nodes": "see resources.nodes",
    **dict.fromkeys(("ntasks", "ntasks-per-node", "ntasks-per-core", "ntasks-per-gpu", "ntasks-per-socket",
                     "tasks-per-node"), "launch starts one task on each node; see resources.gpus_per_node"),
    **dict.fromkeys(("gpus", "gpus-per-node", "gpus-per-task", "gpus-per-socket"),
                    "see resources.gpus_per_node and gpu_type"),
    "cpus-per-task": "see resources.cpus_per_node",
    "cpus-per-gpu": "see cpus_per_gpu",
    **dict.fromkeys(("mem", "mem-per-cpu", "mem-per-gpu"), "see resources.memory_per_node"),
    "time": "see resources.time_limit",
    "signal": "see `grace` of the cluster's profile",
    **dict.fromkeys(("output", "error", "open-mode"), "`launch logs` shows it"),
    **dict.fromkeys(("requeue", "no-requeue", "no-kill"), "see restarts"),
    "comment": "launch finds its job by it",
    **dict.fromkeys(("array", "hetjob"), "a run is one job"),
    "clusters": "a profile is one cluster; set SLURM_CLUSTERS for another",
    "container": "see container_runtime of the cluster's profile",
    "wrap": "launch sends a script",
    **dict.fromkeys(("parsable", "quiet", "verbose", "help", "usage", "version"), "launch reads what sbatch prints"),
    "test-only": "see launch submit --dry-run", "wait": "see launch submit --follow",
    **dict.fromkeys(("export", "export-file", "get-user-env"), "see env and setup"),
    "chdir": "a job starts in its file's folder",
    **{name: f"see {name}" for name in ("partition", "account", "qos", "constraint", "reservation", "exclude",
                                        "licenses", "exclusive")},
}  # fmt: skip
_WHOLE_NODE = "--mem=0"  # all memory of a node, which no size says
_GPU = re.compile(r"--(gres|tres-per-\w+)=(.*[,/])?gpu\b.*")


def _option(text: str) -> str:
    """A long option, whole, that is not launch's own."""
    if not re.fullmatch(r"--[a-z][-a-z]*(=.+)?", single_line(text)) or "\n" in text:
        raise ValueError(f"must be a long option of sbatch, such as --mail-type=END, not {text!r}")
    name = text.removeprefix("--").partition("=")[0]
    own = next((key for key in OWN if key.startswith(name)), None)
    if own and text != _WHOLE_NODE:
        raise ValueError(f"{text!r} cannot be given here ({OWN[own]})")
    if _GPU.fullmatch(text):
        raise ValueError(f"{text!r} cannot be given here ({OWN['gpus']})")
    return text


class SbatchOptions(Section):
    """Options of sbatch, and what is done before the job."""

    options: list[Annotated[str, AfterValidator(_option)]] = Field(
        [], description="Any long option of sbatch, such as --mail-type=END. Of a cluster and a job both count, the "
                        "job's last.")
    gpu_type: Word | None = Field(None, description="Type of the GPUs, such as h100 (Slurm's GRES type).")
    exclusive: bool | Literal["user", "mcs", "topo"] | None = Field(
        None, description="Whether nodes are shared with nobody.")
    reservation: Word | None = Field(None, description="Reservation.")
    exclude: Word | None = Field(None, description="Nodes not to use, such as node[3,7-9].")
    licenses: Word | None = Field(None, description="Licenses, such as matlab:2.")
    cpus_per_gpu: int | None = Field(None, ge=1, le=1024, description="CPU cores for each GPU, of a job that does not "
                                     "ask for cpus_per_node.")
    setup: list[Annotated[str, Field(min_length=1), AfterValidator(single_line)]] = Field(
        [], description="Lines of bash before the job starts, such as module loads or the activation of a virtual "
                        "environment. The cluster's come before the job's; one that fails ends the run.")


class JobSbatch(SbatchOptions):
    """Slurm alone: options of sbatch, over those of the cluster's profile. A list alone is `options`."""

    partition: Word | None = Field(None, description="Partition. Default: the profile's.")
    account: Word | None = Field(None, description="Account. Default: the profile's.")
    qos: Word | None = Field(None, description="Quality of service. Default: the profile's.")
    constraint: Word | None = Field(None, description="Node features. Default: the profile's.")


def _as_section(value: Any) -> Any:
    return {"options": value} if isinstance(value, list) else value


ClusterSection = Annotated[SbatchOptions, BeforeValidator(_as_section)]
JobSection = Annotated[JobSbatch, BeforeValidator(_as_section)]
