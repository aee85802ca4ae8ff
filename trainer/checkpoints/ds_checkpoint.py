"""DeepSpeed's own files of a checkpoint: written by our thread, and read whole. Imported where DeepSpeed is in use."""

from functools import partial
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine import TorchCheckpointEngine

from trainer.checkpoints.saver import Saver

MOMENTS = ("exp_avg", "exp_avg_sq")


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


def finish_loading(engine: Any, checkpoint: Path) -> None:
    """Bring back what DeepSpeed 0.19 leaves out when optimizer states lie on NVMe (`DeepSpeedEngine.load_checkpoint`
    copies their files, and reads the weights in them): Adam's moments, steps and rates, and the weights of the groups
    of parameters that are too small for a file.

    Reads a pickle: only once the checkpoint's hashes are verified.
    """
    outer = engine.optimizer
    path = engine._get_zero_ckpt_name(str(checkpoint), (checkpoint / "latest").read_text().strip())
    saved = torch.load(path, map_location="cpu", weights_only=False)["optimizer_state_dict"]
    adam, weights = saved["optimizer_state_dict"], saved["fp32_flat_groups"]
    outer.checkpoint_event_prologue()
    for number, held in enumerate(outer.fp32_partitioned_groups_flat):
        state, on_disk = dict(adam["state"].get(number, {})), outer._swappable_optimizer_subgroup(number)
        outer._prepare_sub_group(number, None)  # reads the weights from the disk
        if on_disk:
            state |= {moment: _from_disk(outer, moment, held) for moment in MOMENTS if moment in state}
        else:
            held.data.copy_(weights[number])
        outer.optimizer.state[held] = state
        outer._reassign_or_swap_out_partitioned_parameters(number)
        outer._release_sub_group(number, None)
    outer.checkpoint_event_epilogue()
    for group, about in zip(outer.optimizer.param_groups, adam["param_groups"], strict=True):
        group["lr"] = about["lr"]


def _from_disk(outer: Any, moment: str, weights: Any) -> torch.Tensor:
    """One of Adam's moments of a group of parameters, from the file that DeepSpeed has copied: float32, as many as the
    group has weights."""
    path = Path(outer.optimizer_swapper.swap_folder) / f"{moment}-{weights.ds_id}.tensor.swp"
    return torch.from_file(str(path), size=weights.numel(), dtype=torch.float32).clone()
