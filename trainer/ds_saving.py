"""DeepSpeed's part of a save: its own files, written by our thread. Imported where DeepSpeed is in use."""

from functools import partial
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

from trainer.saver import Saver


class LaterCheckpointEngine(TorchCheckpointEngine):  # type: ignore[misc]  # DeepSpeed has no types
    """Where DeepSpeed leaves its state: as its own engine does, by torch.save, but while training goes on."""

    def __init__(self, saver: Saver) -> None:
        super().__init__()
        self.saver = saver

    def save(self, state_dict: Any, path: str) -> None:
        """Write it to `path`."""
        self.saver.write(state_dict, partial(torch.save, f=path))


def write_with(saver: Saver, engine: Any) -> None:
    """From now on the engine's state is written by the saver."""
    engine.checkpoint_engine = LaterCheckpointEngine(saver)
