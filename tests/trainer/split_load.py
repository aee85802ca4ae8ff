"""A process that loads a base in parts, as one of two ranks, and writes down what it read and held."""

import gc
import json
import os

import torch

from trainer.config.job import TrainConfig
from trainer.models import load
from trainer.parallel.ds_config import build_ds_config
from trainer.parallel.partition import Partition, contents


class Measured(Partition):
    """Counts the bytes of all tensors that a rank holds, at every weight before it is split."""

    peak = 0

    def share(self, module, name, owner):
        self.peak = max(self.peak, held_bytes())
        super().share(module, name, owner)


def held_bytes():
    """Every storage once."""
    tensors = [one for one in gc.get_objects() if isinstance(one, torch.Tensor) and not one.is_meta]
    parts = [part for one in tensors for part in contents(one)]
    return sum({part.untyped_storage().data_ptr(): part.untyped_storage().nbytes() for part in parts}.values())


def load_and_measure(folder, raw, rank, port):
    os.environ.update(LOCAL_RANK="0", RANK=str(rank), WORLD_SIZE="2")
    torch.distributed.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    config = TrainConfig.model_validate(raw)
    split, read = Measured(build_ds_config(config, 2, on_cpu=True)), []
    gc.freeze()  # what is there before the weights is not looked at again and again
    every = load.read_tensors

    def counted(path):
        for name, shape, read_one in every(path):
            yield name, shape, lambda name=name, read_one=read_one: (read.append(name), read_one())[1]

    load.read_tensors = counted
    model = load.load_model(config, torch.device("cpu"), split)
    parts = {name: parameter.ds_tensor.nbytes for name, parameter in model.named_parameters()}
    states = [parameter.quant_state for parameter in model.parameters() if hasattr(parameter, "quant_state")]
    scales = sum(one.nbytes for state in states for one in (state.absmax, state.code, *vars(state.state2).values())
                 if isinstance(one, torch.Tensor))
    (folder / f"rank-{rank}.json").write_text(json.dumps(
        {"peak": split.peak, "read": read, "parts": parts, "scales": scales}))
