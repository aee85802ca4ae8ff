"""How far every Triton kernel is from its plain twin in float64 (relative), on a GPU or in Triton's interpreter, which
has to be chosen before Triton is imported: test_kernels.py starts this as a process."""

import json

import torch
from bitsandbytes.functional import quantize_4bit
from bitsandbytes.nn import Params4bit

from trainer.kernels import gpu, plain


def main():
    print(json.dumps(distances("cpu")))


def distances(device):
    """By the names of the kernels."""
    torch.manual_seed(0)
    with torch.device(device):
        return {
            **norms(), **head_norms(), **rotations(), **activations(), **loss(), **dropout(), **weights(),
            **rows(device), **float8(device),
        }  # fmt: skip


def far(found, wanted):
    return ((found.double() - wanted.double()).norm() / wanted.double().norm()).item()


def norms():
    x, grad, residual, weight = torch.randn(5, 96), torch.randn(5, 96), torch.randn(5, 96), torch.randn(96)
    wide = [part.double() for part in (grad, x, weight)]
    return {
        "rms_norm": far(gpu.rms_norm(x, weight, 1e-5), plain.rms_norm(wide[1], wide[2], 1e-5)),
        "rms_norm_backward": far(gpu.rms_norm_backward(grad, x, weight, 1e-5, residual),
                                 plain.rms_norm_backward(*wide, 1e-5, residual.double())),
        "rms_norm_backward_alone": far(gpu.rms_norm_backward(grad, x, weight, 1e-5, None),
                                       plain.rms_norm_backward(*wide, 1e-5, None)),
    }  # fmt: skip


def head_norms():
    """q's and k's heads within a row that holds v, too."""
    rows, grads, weight = torch.randn(6, 9, 24), torch.randn(6, 9, 24), torch.randn(7, 24)
    wide, wide_grads = rows.double(), grads.double()
    out = far(gpu.head_norm(rows[:, :7], weight, 1e-5), plain.head_norm(wide[:, :7], weight.double(), 1e-5))
    gpu.head_norm_backward_(grads[:, :7], rows[:, :7], weight, 1e-5)
    plain.head_norm_backward_(wide_grads[:, :7], wide[:, :7], weight.double(), 1e-5)
    return {"head_norm": out, "head_norm_backward_": far(grads, wide_grads)}


def rotations():
    angles = torch.randn(6, 8)
    cos, sin = (torch.cat([part, part], -1) for part in (angles.cos(), angles.sin()))
    every = torch.randn(6, 9, 16)
    wide = every.double()
    gpu.rope_(every[:, :6], cos, sin)
    plain.rope_(wide[:, :6], cos.double(), sin.double())
    parts = [torch.randn(2, heads, 3, 16).transpose(1, 2) for heads in (5, 2, 2)]  # as the attention leaves them
    back = plain.unrope(*(part.double() for part in parts), cos.double(), sin.double())
    return {"rope_": far(every, wide), "unrope": far(gpu.unrope(*parts, cos, sin), back)}


def activations():
    gate_up, grad = torch.randn(5, 140), torch.randn(5, 70)
    out = far(gpu.swiglu(gate_up), plain.swiglu(gate_up.double()))
    wide = grad.double(), gate_up.double()
    gpu.swiglu_backward_(grad, gate_up)
    plain.swiglu_backward_(*wide)
    return {"swiglu": out, "swiglu_backward_": max(far(grad, wide[0]), far(gate_up, wide[1]))}


def loss():
    logits, targets = 3 * torch.randn(5, 9000), torch.randint(0, 9000, (5,))
    wide = logits.double()
    found, wanted = gpu.cross_entropy_(logits, targets, 0.3), plain.cross_entropy_(wide, targets, 0.3)
    return {"cross_entropy_": max(far(found, wanted), far(logits, wide))}


def dropout():
    """The share that is dropped, the scale of the rest, and the same again for the same seed."""
    x = torch.randn(100, 96)
    found = gpu.dropout(x, 0.25, 7)
    kept = found != 0
    same = torch.equal(found, gpu.dropout(x, 0.25, 7)) and not torch.equal(found, gpu.dropout(x, 0.25, 8))
    share = (~kept).float().mean().item()
    return {"dropout": far(found, x * kept / 0.75) + (0 if same and 0.23 < share < 0.27 else 1)}


def weights():
    dense = torch.randn(70, 192) * 0.1
    weight = Params4bit(dense, requires_grad=False, quant_type="nf4")
    weight.data, weight.quant_state = quantize_4bit(dense, quant_type="nf4", compress_statistics=True)
    a, b, found = torch.randn(24, 192), torch.randn(70, 24), {}
    for name, adapter in (("nf4_weight_", (None, None)), ("nf4_weight_with_adapter", (a, b))):
        out, wanted = torch.empty(70, 192), torch.empty(70, 192, dtype=torch.float64)
        gpu.nf4_weight_(out, weight, *adapter, 0.5)
        plain.nf4_weight_(wanted, weight, *adapter, 0.5)
        found[name] = far(out, wanted)
    return found


def rows(device):
    table, at = torch.randn(50, 96, device="cpu"), torch.tensor([3, 49, 0, 3])
    table = table.pin_memory() if device == "cuda" else table
    return {"take_rows": far(gpu.take_rows(table, at, torch.device(device)).cpu(), table[at.cpu()])}


def float8(device):
    """How far FP8 values, made wide again, are from those of the twin; columns of more than one tile. The product is
    no kernel of ours, and made for GPUs only."""
    found = {}
    for name, x in (("scaled_rows", torch.randn(5, 96)), ("scaled_columns", torch.randn(300, 40))):
        (values, scales), (wanted, wanted_scales) = (getattr(ops, name)(x) for ops in (gpu, plain))
        found[name] = far(values.float() * scales, wanted.float() * wanted_scales)
    if device == "cuda":
        factors = (*plain.scaled_rows(torch.randn(48, 64)), *plain.scaled_rows(torch.randn(32, 64)))
        found["scaled_product"] = far(*(ops.scaled_product(*factors, None) for ops in (gpu, plain)))
    return found


if __name__ == "__main__":
    main()
