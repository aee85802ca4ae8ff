"""Loads a checkpoint in a process of its own, and writes down the most that it held besides the model at any weight."""

import ctypes
import json
import re
from pathlib import Path

import torch

from trainer.config.job import TrainConfig
from trainer.models import load, quantise


def resident(name):
    """VmRSS or VmHWM of this process, in bytes; mapped pages of files count."""
    return int(re.search(rf"{name}:\s+(\d+) kB", Path("/proc/self/status").read_text())[1]) * 1024


def held_by(model):
    """Bytes of the weights that are there, with what undoes their quantisation."""
    states = [getattr(parameter, "quant_state", None) for parameter in model.parameters()]
    scales = sum(state.absmax.nbytes + state.state2.absmax.nbytes for state in states if state is not None)
    return scales + sum(parameter.nbytes for parameter in model.parameters() if not parameter.is_meta)


def load_and_measure(result, warm_up, folder, quantization):
    ctypes.CDLL(None).mallopt(-3, 4096)  # M_MMAP_THRESHOLD: what is freed is given back, and seen as free
    torch.set_num_threads(1)
    quantise.PIECE = 2**16  # as small beside these shards as its own is beside real ones
    raw = {"model": {"quantization": quantization}, "data": {"sources": [{"path": "x"}]}}
    cpu, peaks, made = torch.device("cpu"), [], []

    def config(path):
        return TrainConfig.model_validate({**raw, "model": {**raw["model"], "path": str(path)}})

    load.load_model(config(warm_up), cpu)  # what libraries allocate once
    every, empty = load.read_tensors, load.empty_model
    load.empty_model = lambda *given: made.append(empty(*given)) or made[0]

    def watched(path):
        before, start = held_by(made[0]), resident("VmRSS")
        for one in every(path):
            Path("/proc/self/clear_refs").write_text("5")  # the peak from here on
            yield one
            del one
            peaks.append(resident("VmHWM") - start - (held_by(made[0]) - before))
        peaks.append(resident("VmHWM") - start - (held_by(made[0]) - before))

    load.read_tensors = watched
    load.load_model(config(folder), cpu)
    result.write_text(json.dumps(peaks))
