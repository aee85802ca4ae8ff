"""Options of sbatch that a cluster or a job asks for. No I/O."""

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from launcher.job.types import Word, single_line
from trainer.config import Section

# What launch writes itself or relies on -> what to use instead. The longest start of an option's name counts.
OWN = {
    "job-name": "a run is called after `name` and --run-id",
    "nodes": "see resources.nodes",
    "ntasks": "launch starts one task on each node; processes follow resources.gpus_per_node",
    "tasks-per-node": "launch starts one task on each node",
    "gpus": "see resources.gpus_per_node and gpu_type",
    "gres=gpu": "see resources.gpus_per_node and gpu_type",
    "cpus-per-task": "see resources.cpus_per_node",
    "cpus-per-gpu": "see cpus_per_gpu",
    "mem": "see resources.memory_per_node",
    "time": "see resources.time_limit",
    "signal": "see `grace` of the cluster's profile",
    "output": "`launch logs` shows it", "error": "`launch logs` shows it", "open-mode": "`launch logs` shows it",
    "requeue": "see restarts", "no-requeue": "see restarts",
    "comment": "launch finds its job by it",
    "array": "a run is one job", "hetjob": "a run is one job",
    "wrap": "launch sends a script", "parsable": "launch reads what sbatch prints", "test-only": "see launch validate",
    "quiet": "launch reads what sbatch prints", "wait": "see launch submit --follow",
    "export": "see env", "get-user-env": "see setup", "chdir": "a job starts in its file's folder",
    "partition": "see partition", "account": "see account", "qos": "see qos", "constraint": "see constraint",
    "reservation": "see reservation", "exclude": "see exclude", "licenses": "see licenses",
    "exclusive": "see exclusive",
}  # fmt: skip


def _option(text: str) -> str:
    """A long option, whole."""
    if not re.fullmatch(r"--[a-z][-a-z]*(=.+)?", single_line(text)) or "\n" in text:
        raise ValueError(f"must be a long option of sbatch, such as --mail-type=END, not {text!r}")
    name = text.removeprefix("--")
    own = next((key for key in sorted(OWN, key=len, reverse=True) if _is_about(name, key)), None)
    if own:
        raise ValueError(f"{text!r} cannot be given here: {OWN[own]}")
    return text


def _is_about(option: str, own: str) -> bool:
    """`mem` is also `mem-per-cpu=4G`, but `time` is not `time-min`, nor `nodes` `nodelist`."""
    family = own in ("gpus", "mem", "ntasks", "gres=gpu")
    return option.startswith(own) if family else option.partition("=")[0] == own


class SbatchOptions(Section):
    """Options of sbatch, and what is done before the job."""

    options: list[Annotated[str, AfterValidator(_option)]] = Field(
        [], description="Any long option of sbatch, such as --mail-type=END. Of a cluster and a job both count, the "
                        "job's last.")
    gpu_type: Word | None = Field(None, description="Type of the GPUs, such as h100 (Slurm's GRES type).")
    exclusive: bool | Literal["user", "mcs", "topo"] = Field(False, description="Whether nodes are shared with nobody.")
    reservation: Word | None = Field(None, description="Reservation.")
    exclude: Word | None = Field(None, description="Nodes not to use, such as node[3,7-9].")
    licenses: Word | None = Field(None, description="Licences, such as matlab:2.")
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
