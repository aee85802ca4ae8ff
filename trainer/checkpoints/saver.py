"""Saves that training does not wait for.

A save has three parts. Every rank copies its state to host memory, within the step. A thread of every rank writes the
copies under `.saving`, while training goes on. At the end of a step at which no rank is writing any more, a thread of
rank 0 seals the checkpoint and gives it its name: nobody counts it before. One save is under way at a time: the next
one, and the end of the run, wait for it.

Where the copies would take more than half of the host's free memory, a rank writes its state within the step instead.

Of a save of 700 MB (57 million float32 weights and Adam's states) on two busy cores and a local disk, copying takes
0.4 s at most, writing 0.8 s, the way to the disk 0.1 s and hashing 0.7 s. Training stood still for 0.2 s where it did
for 1.9 s when all of it was done within the step; with DeepSpeed, which keeps the weights twice, for 0.5 s instead of
3.2 s. From an H200, 2 GB (an adapter of a 7B model with its states) are copied in 0.04 s, the first time in 1.2 s: it
takes so long to get host memory that a GPU writes to. Writing takes 1.5 s.
"""

import copy
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from trainer.errors import SaveError
from trainer.node.host_memory import free_bytes
from trainer.node.ranks import Place

# torch and safetensors hide the system's error in a text of their own
WRITE_FAILURES = ("PytorchStreamWriter", "inline_container", "os error")
HOST_SHARE = 0.5


class Saver:
    """The saves of one rank. `publish` gives the checkpoint of a step its name; `barrier` waits for all ranks; `tell`
    prints a line, read by the launcher."""

    def __init__(
        self,
        output: Path,
        publish: Callable[[int], object],
        place: Place,
        barrier: Callable[[], None],
        tell: Callable[[str], None],
    ) -> None:
        self.output, self.place = output, place
        self._publish, self._barrier, self._tell = publish, barrier, tell
        self._thread = ThreadPoolExecutor(1, "saver")
        self._step = 0
        self._jobs: list[Callable[[], object]] = []
        self._writing: Future[None] | None = None  # set on all ranks or on none
        self._publishing: Future[object] | None = None  # on rank 0

    @property
    def is_writing(self) -> bool:
        """Whether this rank has not written its part of the last checkpoint; one that failed never has."""
        writing = self._writing
        return writing is not None and (not writing.done() or writing.exception() is not None)

    @contextmanager
    def save(self, step: int) -> Iterator[None]:
        """Within it `write` takes the state of this step. All ranks take part. Raises SaveError when this rank cannot
        write, or could not write the checkpoint before."""
        self.wait()
        self._step = step
        with self._explained():
            yield
        if not self.place.on_cpu:
            torch.cuda.synchronize()  # the copies are there
        jobs, self._jobs = self._jobs, []
        self._writing = self._thread.submit(_do_all, jobs)

    def write(self, state: Any, write: Callable[[Any], object]) -> None:
        """Have the thread write a copy of the state; without room for a copy, write the state now."""
        if _bytes(state) * self.place.processes > HOST_SHARE * free_bytes():
            write(state)
            return
        held = on_host(state, {})
        self._jobs.append(lambda: write(held))

    def check(self) -> None:
        """Tell of a checkpoint that was published since. Raises SaveError when this rank has failed to write it or to
        publish it."""
        if self._writing is not None and self._writing.done():
            self._result(self._writing)
        if self._publishing is not None and self._publishing.done():
            self._published(self._publishing)

    def all_have_written(self) -> None:
        """Every rank says so, at once: rank 0 publishes."""
        if self._writing is None:
            return
        self._result(self._writing)
        self._writing = None
        if self.place.is_main:
            self._publishing = self._thread.submit(self._publish, self._step)

    def wait(self) -> None:
        """Until the last checkpoint is published. All ranks take part. Raises SaveError when this rank has failed."""
        if self._writing is not None:
            self._result(self._writing)
            self._barrier()
            self.all_have_written()
        if self._publishing is not None:
            self._published(self._publishing)
        self._barrier()

    def _published(self, done: "Future[object]") -> None:
        self._result(done)
        self._publishing = None
        self._tell(f"saved {self.output / f'checkpoint-{self._step}'} (step {self._step})")

    def _result(self, done: "Future[Any]") -> None:
        with self._explained():
            done.result()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:
            if isinstance(error, OSError) or any(word in str(error) for word in WRITE_FAILURES):
                raise self._unwritten(error) from error
            raise

    def _unwritten(self, error: Exception) -> SaveError:
        reason = (isinstance(error, OSError) and error.strerror) or str(error).splitlines()[0]
        free_gib = shutil.disk_usage(self.output).free / 2**30
        return SaveError(
            f"{self.output}: step {self._step} could not be saved: {reason} ({free_gib:.1f} GiB free)",
            "make room, then start the same job again: older checkpoints are as they were",
        )


def on_host(state: Any, copies: dict[Any, torch.Tensor]) -> Any:
    """A copy that training does not change: tensors in host memory, in containers of the same kind. Tensors that are
    one stay one: `copies` has those made so far. On a GPU the copies are under way until it is synchronised."""
    if torch.is_tensor(state):
        key = (state.untyped_storage().data_ptr(), state.storage_offset(), state.shape, state.stride(), state.dtype)
        if key not in copies:
            copies[key] = state.detach().to("cpu", non_blocking=True, copy=True)
        return copies[key]
    if isinstance(state, dict):
        held = copy.copy(state)
        held.update({key: on_host(value, copies) for key, value in state.items()})
        return held
    if type(state) in (list, tuple):
        return type(state)(on_host(value, copies) for value in state)
    return copy.deepcopy(state)


def _bytes(state: Any) -> int:
    """Of the tensors in it."""
    if torch.is_tensor(state):
        return state.numel() * state.element_size()
    if isinstance(state, dict):
        return sum(map(_bytes, state.values()))
    return sum(map(_bytes, state)) if type(state) in (list, tuple) else 0


def _do_all(jobs: list[Callable[[], object]]) -> None:
    """One after the other; what a job holds is free when it is done."""
    while jobs:
        jobs.pop(0)()
