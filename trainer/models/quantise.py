"""Linear layers in 4 and 8 bits: empty ones, and their weights, quantised one at a time while they are read."""

from functools import partial
from typing import Any

import torch

from trainer.families.vision_parts import sees_images
from trainer.parallel.partition import empty_4bit

OUTLIERS = 6.0  # activations beyond it are multiplied in bf16 (LLM.int8's default, and XTuner's)
PIECE = 2**20  # elements; on CPUs bitsandbytes needs some 16 bytes for each


def replace_linears(model: torch.nn.Module, quantization: str, dtype: torch.dtype, keep: str) -> None:
    """Every linear layer but `keep`, the head, and those that see images becomes an empty quantised one: `nf4` (with
    double quantisation) or `int8`."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    kinds = {
        "nf4": partial(
            Linear4bit, compute_dtype=dtype, compress_statistics=True, quant_type="nf4", quant_storage=dtype
        ),
        "int8": partial(Linear8bitLt, has_fp16_weights=False, threshold=OUTLIERS),
    }
    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear and name != keep and not sees_images(name):
            with torch.device("meta"):
                new = kinds[quantization](module.in_features, module.out_features, module.bias is not None)
            model.set_submodule(name, new)


def in_4bit(tensor: torch.Tensor, storage: torch.dtype, device: torch.device, module: Any) -> Any:
    """A weight in 4-bit NormalFloat with double quantisation; of one of the meta device the memory without content."""
    from bitsandbytes.nn import Params4bit

    if tensor.is_meta:
        return empty_4bit(tensor, storage, device, module)
    if device.type == "cpu":
        return _in_pieces(tensor, storage, module)
    value = Params4bit(
        tensor, requires_grad=False, quant_type="nf4", compress_statistics=True, quant_storage=storage, module=module
    )
    return value.to(device)


def _in_pieces(tensor: torch.Tensor, storage: torch.dtype, module: Any) -> Any:
    """The same to the bit, with working memory for a piece instead of several times the weight."""
    from bitsandbytes.functional import QuantState, quantize_4bit, quantize_blockwise
    from bitsandbytes.nn import Params4bit

    pieces = torch.split(tensor.reshape(-1), PIECE)
    done = [quantize_4bit(piece, quant_type="nf4", quant_storage=storage) for piece in pieces]
    largest = torch.cat([state.absmax for _, state in done])
    offset = largest.mean()
    scales, of_scales = quantize_blockwise(largest - offset, blocksize=256)
    first = done[0][1]
    module.quant_state = QuantState(
        absmax=scales,
        shape=tensor.shape,
        dtype=tensor.dtype,
        blocksize=first.blocksize,
        code=first.code,
        quant_type="nf4",
        offset=offset,
        state2=of_scales,
    )
    return Params4bit(
        torch.cat([data for data, _ in done]),
        requires_grad=False,
        quant_state=module.quant_state,
        quant_type="nf4",
        quant_storage=storage,
        module=module,
        bnb_quantized=True,
    )


def in_8bit(tensor: torch.Tensor, storage: torch.dtype, device: torch.device, module: Any) -> Any:
    """A weight in 8 bits, with a scale for each row."""
    from bitsandbytes.functional import int8_vectorwise_quant
    from bitsandbytes.nn import Int8Params

    rows, scales, _ = int8_vectorwise_quant(tensor.half())
    return Int8Params(rows, requires_grad=False, has_fp16_weights=False, CB=rows, SCB=scales)


QUANTISED = {"Linear4bit": in_4bit, "Linear8bitLt": in_8bit}
