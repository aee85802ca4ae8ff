"""Weights that are split over the ranks while they are read (ZeRO-3), so that no rank ever holds the whole model: the
ranks take turns in reading and quantising a weight, give it to the others, and all keep their part of it.

DeepSpeed alone would split a model only after every rank has loaded all of it: its zero.Init knows nothing of quantised
weights (peft issue 2016, bitsandbytes issue 1249).
"""

from functools import cache
from typing import Any

import torch
from torch import distributed

from trainer.parallel.ds_config import AUTO


class Partition:
    """Splits the weights of one model. `ds_config`: DeepSpeed's configuration."""

    def __init__(self, ds_config: dict[str, Any]) -> None:
        # sizes that are known later are of no use here
        zero = {key: value for key, value in ds_config["zero_optimization"].items() if value != AUTO}
        self._ds_config = {**ds_config, "zero_optimization": zero}
        self._first: Any = None

    @staticmethod
    def owner(turn: int) -> int:
        """The rank that reads the weight of this turn."""
        return turn % distributed.get_world_size()

    def share(self, module: torch.nn.Module, name: str, owner: int) -> None:
        """Give a weight of `module`, of which the other ranks have the empty shape, to all; then keep a part of it.
        What undoes the quantisation, a hundredth of the weight, stays whole on every rank."""
        parameter = getattr(module, name)
        for tensor in contents(parameter):
            distributed.broadcast(tensor.detach().reshape(-1).view(torch.uint8), owner)
        if self._first is None:
            self._first = self._split_first(parameter)
        else:
            self._first.convert_to_zero_parameters([parameter])

    def _split_first(self, parameter: Any) -> Any:
        """DeepSpeed's own way in is a module; later parameters go the way of the first."""
        from deepspeed.comm import init_distributed
        from deepspeed.runtime.zero import Init

        init_distributed(verbose=False)  # takes over torch's group; without it DeepSpeed counts one rank
        alone = torch.nn.Module()
        alone.register_parameter("weight", parameter)
        Init(module=alone, config_dict_or_path=self._ds_config)
        return parameter


def is_partitioned(model: torch.nn.Module) -> bool:
    """Whether the ranks have parts of the model's weights."""
    return any(hasattr(parameter, "ds_id") for parameter in model.parameters())


def full_size(parameter: Any) -> int:
    """Number of elements on all ranks together."""
    return int(getattr(parameter, "ds_numel", parameter.numel()))


def contents(parameter: Any) -> list[torch.Tensor]:
    """What two weights of the same shape may differ in: the data, and in 4 bits the scales of its blocks."""
    state = getattr(parameter, "quant_state", None)
    if state is None:
        return [parameter.data]
    return [parameter.data, state.absmax, state.offset, state.state2.absmax]


def empty_4bit(tensor: torch.Tensor, storage: torch.dtype, device: torch.device, module: Any) -> Any:
    """What quantising a weight would give (bitsandbytes' quantize_4bit: scales of 64 weights, in 8 bits with scales of
    256 each), as memory without content; `tensor` is of the meta device."""
    from bitsandbytes.functional import QuantState, quantize_4bit
    from bitsandbytes.nn import Params4bit

    data, single = quantize_4bit(tensor, quant_type="nf4", quant_storage=storage)
    blocks, (code, scale_code) = single.absmax.numel(), _codes(device)
    scales = QuantState(
        absmax=torch.empty(-(-blocks // 256), device=device),
        code=scale_code,
        blocksize=256,
        dtype=torch.float32,
    )
    module.quant_state = QuantState(
        absmax=torch.empty(blocks, dtype=torch.uint8, device=device),
        shape=tensor.shape,
        dtype=tensor.dtype,
        blocksize=single.blocksize,
        code=code,
        quant_type="nf4",
        offset=torch.empty((), device=device),
        state2=scales,
    )
    return Params4bit(
        torch.empty_like(data, device=device),
        quant_state=module.quant_state,
        quant_type="nf4",
        quant_storage=storage,
        module=module,
        bnb_quantized=True,
    )


@cache
def _codes(device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """The values that 4 and 8 bits stand for; the same for all weights."""
    from bitsandbytes.functional import create_dynamic_map, get_4bit_type

    return get_4bit_type("nf4", device=device), create_dynamic_map().to(device)
