"""What happens at a log line, an evaluation, and the end of a step."""

import math
import sys
import time
from collections.abc import Callable
from typing import Any

import torch
from transformers import TrainerCallback

from trainer.dist import Place
from trainer.divergence import Divergence
from trainer.metrics import Ledger, MetricsFile, memory_gib, step_line
from trainer.peers import Peers
from trainer.stop import Stop


class LogCallback(TrainerCallback):  # type: ignore[misc]
    """The step line and metrics.jsonl."""

    def __init__(
        self,
        place: Place,
        metrics: MetricsFile,
        ledger: Ledger,
        divergence: Divergence,
        tell: Callable[[str], None],
        *,
        epochs_per_step: float,
    ) -> None:
        self.place, self.metrics, self.ledger, self.divergence, self.tell = place, metrics, ledger, divergence, tell
        self.epochs_per_step = epochs_per_step
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
        now, (began, first_step) = time.monotonic(), self._first
        per_step = (now - began) / max(1, state.global_step - first_step)
        values = {
            "step": state.global_step,
            "total": state.max_steps,
            # transformers puts the mean of earlier steps in place of a loss that is not a number
            "loss": float(logs["loss"]) if self.divergence.is_good else math.nan,
            "lr": float(logs.get("learning_rate", 0.0)),
            "grad_norm": float(logs.get("grad_norm") or 0.0),
            "epoch": state.global_step * self.epochs_per_step,
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


class BeforeCallback(TrainerCallback):  # type: ignore[misc]
    """What waits for DeepSpeed to be there, and comes before the first step."""

    def __init__(self, act: Callable[[], object]) -> None:
        self.act = act

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Now."""
        self.act()


class SampleCallback(TrainerCallback):  # type: ignore[misc]
    """Answers the questions every so many steps."""

    def __init__(self, every: int, ask: Callable[[int], object]) -> None:
        self.every, self.ask = every, ask

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The last step is left to the comparison at the end."""
        if state.global_step % self.every == 0 and state.global_step < state.max_steps:
            self.ask(state.global_step)


class ValidationCallback(TrainerCallback):  # type: ignore[misc]
    """Measures the loss on the validation rows every so many steps and at the end: one line, one row of metrics."""

    def __init__(
        self, every: int, loss: Callable[[], float], place: Place, metrics: MetricsFile, tell: Callable[[str], None]
    ) -> None:
        self.every, self.loss, self.place, self.metrics, self.tell = every, loss, place, metrics, tell

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """On all ranks at once."""
        if state.global_step % self.every and state.global_step < state.max_steps:
            return
        loss = self.loss()
        self.tell(f"validation at step {state.global_step}/{state.max_steps}  loss {loss:.4f}")
        if self.place.is_main:
            self.metrics.append({"step": state.global_step, "validation_loss": loss, "time": time.time()})


class StepCallback(TrainerCallback):  # type: ignore[misc]
    """What all ranks agree on at the end of a step: whether one of them was told to stop, or saw a bad step."""

    def __init__(
        self, place: Place, stop: Stop, ledger: Ledger, divergence: Divergence, peers: Peers | None
    ) -> None:
        self.place, self.stop, self.ledger, self.divergence, self.peers = place, stop, ledger, divergence, peers
        self.stopped = False
        self.saved = "nothing saved"

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """From here on a signal waits for the end of a step."""
        self.stop.wait_for_step_end()
        if self.peers:
            self.peers.ready()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Told: save and stop. Bad: what DeepSpeed or we have passed over is not saved as progress."""
        passed_over = kwargs["optimizer"].step_was_skipped
        told, bad = any_rank([self.stop.told, passed_over or not self.ledger.is_finite], self.place.device)
        if told:
            self._stop(state, control)
            control.should_save = True
        self.divergence.judge(state.global_step, self.ledger, bad=bad)
        if bad:
            control.should_save = False

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Told during the save: it need not be done again."""
        self.saved = f"saved at step {state.global_step}"
        if any_rank([self.stop.told], self.place.device)[0]:
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
