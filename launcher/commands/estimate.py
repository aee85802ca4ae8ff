"""launch estimate: what a job needs, and whether it fits."""

import dataclasses
import os
from typing import Any

import click

from launcher.errors import SpecError
from launcher.job.kind import Estimable
from launcher.kinds.registry import able_to
from launcher.kinds.train.assess import NO_CHANGE, Assessment
from launcher.kinds.train.limits import Limit, gigabytes
from launcher.kinds.train.remedy import Setup
from launcher.services.options import job_options, json_option
from launcher.services.prepare import Request, prepare
from launcher.terminal import ui
from trainer.sizing.estimate import GpuMemory

# Parts of a GPU's memory, as people call them
PARTS = {
    "weights": "weights",
    "adapters": "adapters",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "buffers": "work buffers",
    "deepspeed": "DeepSpeed and NCCL buffers",
    "context": "CUDA context",
    "activations": "activations kept",
    "layer": "one layer's backward pass",
    "loss": "logits and loss",
    "step": "optimizer step",
}
MOMENTS = ("layer", "loss", "step")  # of these one at a time


@click.command("estimate")
@job_options
@click.option("--gpu-memory", metavar="SIZE", help="Memory of one GPU, such as 80GiB. Default: gpu_memory of the "
              "cluster's profile.")
@json_option
def command(request: Request, gpu_memory: str | None, json_output: bool) -> None:
    """Bytes of each GPU by part, memory of a node and /dev/shm, from the job file alone: no GPU, no download, nothing
    sent. The model's shape comes from the config.json in its folder, or from a table of known names. Exit code 0 when
    the job fits or nobody can tell, 2 when it does not. GB are 10^9 bytes."""
    prepared = prepare(request, os.environ)
    if not isinstance(prepared.kind, Estimable):
        raise SpecError(f"{request.path}: has `{prepared.kind.key}`, and launch estimate takes jobs with "
                        f"`{'` or `'.join(able_to(Estimable))}`")
    found: Assessment = prepared.kind.assess(prepared.job.section, prepared, gpu_memory)
    if json_output:
        ui.as_json(_as_json(found))
    else:
        _show(found)
    if found.fit.word == "does not fit":
        raise SpecError(f"{request.path}: the job does not fit (see above)")


def _as_json(found: Assessment) -> dict[str, Any]:
    values: dict[str, Any] = {"model": found.known.source, "verdict": found.fit.word, "reasons": found.fit.reasons,
                              "change": found.change.sets if found.change else None}
    for name, limit in dataclasses.asdict(found.limits).items():
        values[f"{name}_limit"] = limit and limit["size"]
    if found.setup:
        estimate = found.setup.found
        values |= {**dataclasses.asdict(estimate), "gpu_total": estimate.gpu.total,
                   **dataclasses.asdict(found.setup.job.placement)}
    return values


def _show(found: Assessment) -> None:
    rows = []
    if found.setup:
        parts = found.setup.found.gpu
        device = "GPU" if found.setup.job.placement.on_gpu else "PROCESS"
        ui.print_table([f"PART OF EACH {device}", "GB", ""], _part_rows(parts))
        ui.data("")
        rows = _rows(found, found.setup)
    rows += [["verdict", found.fit.word], *([["", reason] for reason in found.fit.reasons])]
    if found.change:
        rows += [["nearest change that fits", found.changes()], ["", _then(found.change)]]
    elif found.fit.word == "does not fit":
        rows.append(["nearest change that fits", NO_CHANGE])
    ui.print_table(["JOB", ""], rows)


def _then(change: Setup) -> str:
    total = change.found.gpu.total if change.job.placement.on_gpu else change.found.host
    return f"each {'GPU' if change.job.placement.on_gpu else 'node'} then needs {gigabytes(total)}"


def _part_rows(memory: GpuMemory) -> list[list[str]]:
    """One row a part; those of other moments than the peak are not in the total."""
    sizes = dataclasses.asdict(memory)
    peak = max(MOMENTS, key=lambda name: sizes[name] + (0 if name == "step" else memory.activations))
    left_out = {name for name in MOMENTS if name != peak} | ({"activations"} if peak == "step" else set())
    rows = [[text, f"{sizes[name] / 1e9:8.2f}", "at another moment" if name in left_out else ""]
            for name, text in PARTS.items() if sizes[name]]
    return [*rows, ["total", f"{memory.total / 1e9:8.2f}", ""]]


def _rows(found: Assessment, setup: Setup) -> list[list[str]]:
    estimate, place, limits = setup.found, setup.job.placement, found.limits
    device = "GPUs" if place.on_gpu else "processes"
    rows = [
        ["model", found.known.source],
        ["parameters", f"{estimate.parameters:,}, {estimate.trained:,} of them trained"],
        [device, f"{place.world} ({place.nodes} x {place.per_node}), ZeRO stage {setup.job.zero_stage}"],
        ["gradient checkpointing", estimate.policy],
    ]
    if place.on_gpu:
        rows.append(["each GPU", _of(estimate.gpu.total, limits.gpu)])
    return [*rows, ["each node, at least", _of(estimate.host, limits.host)],
            ["of it in /dev/shm", _of(estimate.shm, limits.shm)]]


def _of(size: int, limit: Limit | None) -> str:
    return gigabytes(size) + (f" of {limit}" if limit else "")
