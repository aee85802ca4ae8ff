"""What happens at a log line, a save, an evaluation and a signal."""

import math
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

from trainer.checkpoint import seal
from trainer.dist import Place
from trainer.errors import DivergedError
from trainer.metrics import MetricsFile, memory_gib, step_line


class Ledger:
    """What this process has computed: tokens, padding included, and the rows of the step under way."""

    def __init__(self) -> None:
        self.tokens = 0
        self.rows: list[int] = []


class LogCallback(TrainerCallback):  # type: ignore[misc]
    """The step line and metrics.jsonl; every rank checks the loss."""

    def __init__(self, place: Place, metrics: MetricsFile, ledger: Ledger, tell: Callable[[str], None]) -> None:
        self.place, self.metrics, self.ledger, self.tell = place, metrics, ledger, tell
        self._since = time.monotonic()
        self._seen = 0
        self._first: tuple[float, int] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self._since, self._first = time.monotonic(), (time.monotonic(), state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Print and keep one step."""
        if not logs or "loss" not in logs or self._first is None:
            return
        if not math.isfinite(logs["loss"]):
            raise DivergedError(
                f"step {state.global_step}: the loss is {logs['loss']}", "lower optimizer.lr, or look at the data"
            )
        now, (began, first_step) = time.monotonic(), self._first
        per_step = (now - began) / max(1, state.global_step - first_step)
        values = {
            "step": state.global_step,
            "total": state.max_steps,
            "loss": float(logs["loss"]),
            "lr": float(logs.get("learning_rate", 0.0)),
            "grad_norm": float(logs.get("grad_norm") or 0.0),
            "epoch": float(logs.get("epoch", 0.0)),
            "tokens_per_s": (self.ledger.tokens - self._seen) * self.place.world / max(1e-9, now - self._since),
            "memory_gib": memory_gib(),
            "eta_s": per_step * (state.max_steps - state.global_step),
            "time": time.time(),
        }
        self._since, self._seen = now, self.ledger.tokens
        self.tell(step_line(values))
        if self.place.is_main:
            self.metrics.append(values)


class RowsCallback(TrainerCallback):  # type: ignore[misc]
    """Says on every rank which rows a finished step trained on: `rows STEP  rank R  ID ID ...`; read by the launcher.

    The numbers come with the batches, not from the sampler, so that the line proves what was trained.
    """

    def __init__(self, place: Place, ledger: Ledger) -> None:
        self.place, self.ledger = place, ledger

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One line, one write: ranks of a node share the log."""
        numbers = " ".join(map(str, self.ledger.rows))
        sys.stdout.write(f"rows {state.global_step}  rank {self.place.rank}  {numbers}\n")
        sys.stdout.flush()


class SealCallback(TrainerCallback):  # type: ignore[misc]
    """Seals a checkpoint when every rank has written its part."""

    def __init__(self, place: Place) -> None:
        self.place = place

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """After the barrier all files are there."""
        barrier()
        if self.place.is_main:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")
        barrier()


class SampleCallback(TrainerCallback):  # type: ignore[misc]
    """Answers the questions every so many steps."""

    def __init__(self, every: int, ask: Callable[[int], object]) -> None:
        self.every, self.ask = every, ask

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last step is left to the comparison at the end."""
        if state.global_step % self.every == 0 and state.global_step < state.max_steps:
            self.ask(state.global_step)


class StopCallback(TrainerCallback):  # type: ignore[misc]
    """TERM and USR1: save at the end of this step, on every rank, and stop."""

    def __init__(self, place: Place) -> None:
        self.place = place
        self.told = False
        self.stopped = False

    def install(self) -> None:
        """Take the signals; a second one changes nothing."""
        for number in (signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, self._hear)

    def _hear(self, number: int, frame: object) -> None:
        self.told = True

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """All ranks agree, since one of them alone may have been told."""
        if any_rank(self.told, self.place.device):
            self.stopped = state.global_step < state.max_steps
            control.should_save = True
            control.should_training_stop = True


def barrier() -> None:
    """Wait for all ranks."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def any_rank(flag: bool, device: torch.device) -> bool:
    """Whether the flag is set on any rank."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return flag
    told = torch.tensor([int(flag)], device=device)
    torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
    return bool(told.item())
