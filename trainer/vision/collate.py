"""Rows with images -> batch tensors, in the DataLoader's worker processes."""

import os
import signal
import threading
from typing import Any

import numpy as np
import torch

from trainer.data.collate import Collator
from trainer.data.rows import Row
from trainer.errors import ConfigError
from trainer.node.stop import STOP_SIGNALS
from trainer.vision.files import ImageFiles
from trainer.vision.image_form import ImageForm
from trainer.vision.pixels import ImageFileError, read_image, to_pixels
from trainer.vision.prompt import image_mask

MAX_WORKERS = 4  # a GPU trains on fewer images a second than these decode


class ImageCollator(Collator):
    """A Collator for samples with images. `processes`: of this node, which share its cores."""

    def __init__(self, pad_id: int, length: int | None, form: ImageForm, files: ImageFiles, processes: int = 1) -> None:
        super().__init__(pad_id, length)
        self.form, self.files = form, files
        self.workers = max(1, min(MAX_WORKERS, len(os.sched_getaffinity(0)) // processes - 1))

    def __call__(self, rows: list[Row]) -> dict[str, Any]:
        """As a Collator, and for rows with images: pixel_values, float32 [N, 3, size, size], and where the form asks
        for it image_mask, bool [B, T]. `problem`: why an image that was there is not any more."""
        batch = super().__call__(rows)
        images = [image for row in rows for image in row.images]
        if not images:
            return batch
        try:
            pixels = [self._pixels(name) for _, name in images]
        except ImageFileError as error:
            return {**batch, "problem": str(error)}
        batch["pixel_values"] = torch.from_numpy(np.stack(pixels))
        if self.form.masked:
            starts = [(place, start) for place, row in enumerate(rows) for start, _ in row.images]
            batch["image_mask"] = image_mask(batch["input_ids"].shape, starts, self.form)
        return batch

    def _pixels(self, name: str) -> Any:
        path = self.files.path(name)
        try:
            return to_pixels(read_image(path), self.form)
        except ImageFileError as error:
            raise ImageFileError(f"{path}: {error}") from error


def require_images(batch: dict[str, Any]) -> None:
    """Raise ConfigError for a batch with a problem: an error that a worker process raises arrives as a traceback."""
    if "problem" in batch:
        raise ConfigError(batch["problem"], "an image of the encoded data is gone: put it back")


def begin_worker(number: int) -> None:
    """In a new worker process: the signals that tell a job to stop are the trainer's to answer; of its own parent the
    worker takes them as the end."""
    signal.set_wakeup_fd(-1)
    signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while signal.sigwaitinfo(STOP_SIGNALS).si_pid != parent:
        pass
    os._exit(0)
