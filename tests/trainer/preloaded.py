"""What every training run would do first, done once: the fork server of tests/trainer/warm.py imports this."""

import atexit
import gc
import tempfile
from importlib import import_module
from pathlib import Path

import torch

from trainer.config.job import Lora, Shape
from trainer.models.lora import attach_lora
from trainer.new_model.create import new_model
from trainer.training.metrics import plot_loss

for name in ("trainer.engine", "trainer.cli", "trainer.config.file", "datasets", "sentencepiece",
             "torch.utils.tensorboard", "torch.utils.cpp_extension", "deepspeed.ops.adam"):  # fmt: skip
    import_module(name)
with torch.device("meta"):
    attach_lora(new_model(Shape(), 0), Lora(), "a base")  # transformers makes a table of all its models for it
with tempfile.TemporaryDirectory() as folder:
    plot_loss([{"step": 1, "loss": 1.0}], Path(folder) / "loss.png")
gc.collect()
gc.freeze()  # no run looks through all of it again
atexit.register(gc.unfreeze)
