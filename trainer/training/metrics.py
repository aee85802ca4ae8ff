"""What a run measures: one line a step on stdout, one JSON object a step in metrics.jsonl, and a plot."""

import json
import math
import resource
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.node.files import replace_text
from trainer.training.stopwatch import Stopwatch


def step_line(values: Mapping[str, Any]) -> str:
    """`step 10/250  epoch 0.12  loss 2.3456  lr 1.0e-03  grad 0.51  tok/s 12345  mfu 41.2%  mem 1.2GiB  eta 0:00:32`;
    read by the launcher. No mfu where the card's rate is unknown; mem is what the device says is used, or this
    process's where there is no GPU."""
    seconds = int(values["eta_s"])
    eta = f"{seconds // 3600}:{seconds % 3600 // 60:02}:{seconds % 60:02}"
    used = "" if values["mfu"] is None else f"mfu {values['mfu']:.1%}  "
    memory = values["memory_gib"] if values["device_used_gib"] is None else values["device_used_gib"]
    return (
        f"step {values['step']}/{values['total']}  epoch {values['epoch']:.2f}  loss {values['loss']:.4f}  "
        f"lr {values['lr']:.1e}  grad {values['grad_norm']:.2f}  "
        f"tok/s {values['tokens_per_s']:.0f}  {used}mem {memory:.1f}GiB  eta {eta}"
    )


def memory_gib(*, on_cpu: bool) -> dict[str, float | None]:
    """`memory_gib`: this process's peak, allocated on its GPU or, without one, resident. `device_used_gib`: what the
    GPU says is used, by all processes and by what torch holds in reserve."""
    import torch

    if on_cpu:
        resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        return {"memory_gib": resident, "device_used_gib": None}
    free, total = torch.cuda.mem_get_info()
    return {"memory_gib": torch.cuda.max_memory_allocated() / 2**30, "device_used_gib": (total - free) / 2**30}


@dataclass
class StepStatistics:
    """What this process has computed: tokens, padding included, the time for them, and of the step under way its rows,
    loss and gradient norm (None where there is none)."""

    tokens: int = 0
    stopwatch: Stopwatch = field(default_factory=Stopwatch)
    rows: list[int] = field(default_factory=list)
    grad_norm: float | None = None
    _loss: Any = 0.0

    def begin_step(self) -> None:
        """Forget the step before."""
        self.rows, self._loss, self.grad_norm = [], 0.0, None

    def add_loss(self, loss: Any) -> None:
        """Of a micro-batch, a tensor: nobody waits for its value until somebody asks."""
        self._loss = self._loss + loss

    @property
    def loss(self) -> float:
        """Of the step so far."""
        return float(self._loss)

    @property
    def is_finite(self) -> bool:
        """Whether the step's loss and gradient are numbers."""
        return math.isfinite(self.loss) and (self.grad_norm is None or math.isfinite(self.grad_norm))


class MetricsFile:
    """metrics.jsonl of an output folder."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def keep_up_to(self, step: int) -> None:
        """Forget what a run that goes on after `step` will measure again."""
        if not self.path.exists():
            return
        rows = [row for row in self.read() if row["step"] <= step]
        replace_text(self.path, "".join(json.dumps(row) + "\n" for row in rows))

    def append(self, values: Mapping[str, Any]) -> None:
        """Add one row; a number that is not finite becomes null."""
        finite = {
            key: None if isinstance(value, float) and not math.isfinite(value) else value
            for key, value in values.items()
        }
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(finite) + "\n")

    def read(self) -> list[dict[str, Any]]:
        """All complete rows."""
        if not self.path.exists():
            return []
        rows = []
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                rows.append(json.loads(line))
            except ValueError:  # a last line that a kill cut short
                continue
        return rows


def plot_loss(rows: list[dict[str, Any]], path: Path) -> None:
    """The loss over the steps, as a PNG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    points = [(row["step"], row["loss"]) for row in rows if row.get("loss") is not None]
    figure, axes = pyplot.subplots(figsize=(7, 4))
    axes.plot([step for step, _ in points], [loss for _, loss in points])
    axes.set_xlabel("step")
    axes.set_ylabel("training loss")
    axes.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    pyplot.close(figure)
