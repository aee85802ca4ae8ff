"""What happens at a log line, an evaluation, and the end of a step."""

import math
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback

from trainer.checkpoints.saver import Saver
from trainer.node.peers import Peers
from trainer.node.ranks import Place
from trainer.node.stop import Stop
from trainer.training.divergence import Divergence, gathered
from trainer.training.forward_timer import ForwardTimes
from trainer.training.metrics import MetricsFile, StepStatistics, memory_gib, step_line
from trainer.training.stopwatch import Stopwatch
from trainer.training.watch import Watch


@dataclass(frozen=True)
class MetricsLog:
    """Where a rank says what it has measured: lines for people, and rows of metrics.jsonl, which rank 0 keeps."""

    place: Place
    tell: Callable[[str], None]
    metrics: MetricsFile

    def keep(self, values: dict[str, Any]) -> None:
        """Add a row, with the time."""
        if self.place.is_main:
            self.metrics.append({**values, "time": time.time()})


@dataclass(frozen=True)
class Counters:
    """Where counters stood at a step: tokens, seconds of training, of waiting for batches and of pauses."""

    step: int
    tokens: int
    trained_s: float
    waited_s: float
    paused_s: float


# what reports get of it beside transformers' own values
REPORTED = ("tokens_per_s", "mfu", "step_s", "data_wait_s", "paused_s", "memory_gib", "device_used_gib")


class LogCallback(TrainerCallback):  # type: ignore[misc]
    """The step line, metrics.jsonl, and what the other callbacks report: its values are added to the log that they
    get, so it must be the first of them. `flops`: those of a token, and those of a device in a second; None where that
    is unknown."""

    def __init__(
        self,
        metrics_log: MetricsLog,
        statistics: StepStatistics,
        divergence: Divergence,
        watch: Watch,
        epochs_per_step: float,
        flops: tuple[float, float] | None,
    ) -> None:
        self.metrics_log, self.statistics, self.divergence, self.watch = metrics_log, statistics, divergence, watch
        self.epochs_per_step, self.flops = epochs_per_step, flops
        self.forward = ForwardTimes(metrics_log.place.device)
        self._first: tuple[float, int] | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.forward.attach(kwargs["model"])
        self._since, self._first = self._read(state.global_step), (time.monotonic(), state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        """Print and keep one step."""
        if not logs or "loss" not in logs or self._first is None:
            return
        began, first_step = self._first
        per_step = (time.monotonic() - began) / max(1, state.global_step - first_step)
        values = {
            "step": state.global_step,
            "total": state.max_steps,
            # in place of a loss that is not a number the one before is reported
            "loss": float(logs["loss"]) if self.divergence.is_good else math.nan,
            "lr": float(logs.get("learning_rate", 0.0)),
            "grad_norm": float(logs.get("grad_norm") or 0.0),
            "epoch": state.global_step * self.epochs_per_step,
            **self._measured(state.global_step),
            "eta_s": per_step * (state.max_steps - state.global_step),
        }
        logs.update({name: values[name] for name in REPORTED if values[name] is not None})
        self.metrics_log.tell(step_line(values))
        self.metrics_log.keep(values)

    def _measured(self, step: int) -> dict[str, float | None]:
        """What the mean step since the last line took. All ranks take part."""
        before, now = self._since, self._read(step)
        self._since, steps = now, max(1, now.step - before.step)
        trained_s = max(1e-9, now.trained_s - before.trained_s)
        mine = [now.tokens - before.tokens, (now.waited_s - before.waited_s) / steps, self.forward.take() / steps]
        ranks = gathered(torch.tensor(mine, dtype=torch.float64, device=self.metrics_log.place.device))
        tokens, waited_s, forward_s = zip(*ranks, strict=True)
        self.watch.interval(trained_s / steps, waited_s, forward_s)
        per_s = sum(tokens) / trained_s
        return {
            "tokens_per_s": per_s,
            "mfu": per_s / len(ranks) * self.flops[0] / self.flops[1] if self.flops else None,
            "step_s": trained_s / steps,
            "data_wait_s": mine[1],
            "paused_s": now.paused_s - before.paused_s,
            **memory_gib(on_cpu=self.metrics_log.place.on_cpu),
        }

    def _read(self, step: int) -> Counters:
        stopwatch = self.statistics.stopwatch
        return Counters(step, self.statistics.tokens, stopwatch.trained_s, stopwatch.waited_s, stopwatch.paused_s)


class RowsCallback(TrainerCallback):  # type: ignore[misc]
    """Says on every rank which rows a finished step trained on: `rows STEP  rank R  ID ID ...`; read by the launcher.

    The numbers come with the batches, not from the sampler, so that the line proves what was trained.
    """

    def __init__(self, place: Place, statistics: StepStatistics) -> None:
        self.place, self.statistics = place, statistics

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """One line, one write: ranks of a node share the log."""
        numbers = " ".join(map(str, self.statistics.rows))
        sys.stdout.write(f"rows {state.global_step}  rank {self.place.rank}  {numbers}\n")
        sys.stdout.flush()


class BeforeCallback(TrainerCallback):  # type: ignore[misc]
    """What waits for DeepSpeed to be there, and comes before the first step."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Now."""
        self.act()


class StepEndCallback(TrainerCallback):  # type: ignore[misc]
    """What comes first at the end of every step, before anything is written."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Now."""
        self.act()


class SampleCallback(TrainerCallback):  # type: ignore[misc]
    """Answers the questions every so many steps."""

    def __init__(self, every: int, ask: Callable[[int], object], stopwatch: Stopwatch) -> None:
        self.every, self.ask, self.stopwatch = every, ask, stopwatch

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last step is left to the comparison at the end."""
        if state.global_step % self.every == 0 and state.global_step < state.max_steps:
            with self.stopwatch.paused():
                self.ask(state.global_step)


class ValidationCallback(TrainerCallback):  # type: ignore[misc]
    """Measures the loss on the validation rows every so many steps and at the end: one line, one row of metrics, and
    to whom else `report` tells it, under transformers' name."""

    def __init__(
        self,
        every: int,
        loss: Callable[[], float],
        metrics_log: MetricsLog,
        report: Callable[[dict[str, float]], None],
        stopwatch: Stopwatch,
    ) -> None:
        self.every, self.loss, self.metrics_log = every, loss, metrics_log
        self.report, self.stopwatch = report, stopwatch

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """On all ranks at once."""
        if state.global_step % self.every and state.global_step < state.max_steps:
            return
        with self.stopwatch.paused():
            loss = self.loss()
        self.metrics_log.tell(f"validation at step {state.global_step}/{state.max_steps}  loss {loss:.4f}")
        self.metrics_log.keep({"step": state.global_step, "validation_loss": loss})
        logs_step = control.should_log
        self.report({"eval_loss": loss})
        control.should_log = logs_step  # transformers takes it for the step's own log


class StepCallback(TrainerCallback):  # type: ignore[misc]
    """What all ranks agree on at the end of a step: whether one of them was told to stop, saw a bad step, or is still
    writing the last checkpoint."""

    def __init__(
        self, place: Place, stop: Stop, statistics: StepStatistics, divergence: Divergence, saver: Saver,
        peers: Peers | None,
    ) -> None:
        self.place, self.stop, self.statistics, self.divergence, self.peers = place, stop, statistics, divergence, peers
        self.saver = saver
        self.stopped = False
        self.saved = "nothing saved"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """From here on a signal waits for the end of a step. Only good steps are saved, so a run that goes on has
        some."""
        self.stop.wait_for_step_end()
        self.divergence.has_good = state.global_step > 0
        if self.peers:
            self.peers.ready()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Told: save and stop. Bad: what DeepSpeed or we have passed over is not saved as progress. Raises SaveError
        when the last save has failed."""
        self.saver.check()
        passed_over = kwargs["optimizer"].step_was_skipped
        bad_here = passed_over or not self.statistics.is_finite
        told, bad, writing = any_rank([self.stop.requested, bad_here, self.saver.is_writing], self.place.device)
        if not writing:
            self.saver.all_have_written()
        if told:
            self._stop(state, control)
            control.should_save = True
        self.divergence.judge(state.global_step, self.statistics, bad=bad, last=state.global_step >= state.max_steps)
        if bad:
            control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Told during the save: it need not be done again."""
        self.saved = f"saved at step {state.global_step}"
        if any_rank([self.stop.requested], self.place.device)[0]:
            self._stop(state, control)

    def _stop(self, state: Any, control: Any) -> None:
        self.stopped = state.global_step < state.max_steps
        control.should_training_stop = True


def barrier() -> None:
    """Wait for all ranks."""
    if torch.distributed.is_initialized():
        torch.distributed.barrier()


def from_main(number: int, device: torch.device) -> int:
    """Rank 0's number, on every rank."""
    if not torch.distributed.is_initialized():
        return number
    told = torch.tensor(number, device=device)
    torch.distributed.broadcast(told, 0)
    return int(told.item())


def any_rank(flags: list[bool], device: torch.device) -> list[bool]:
    """Which flags are set on any rank."""
    if not torch.distributed.is_initialized() or torch.distributed.get_world_size() == 1:
        return flags
    told = torch.tensor(flags, dtype=torch.int32, device=device)
    torch.distributed.all_reduce(told, op=torch.distributed.ReduceOp.MAX)
    return [bool(flag) for flag in told.tolist()]
