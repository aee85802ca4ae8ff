"""The loss at the end, over the positions that are trained only, a part of the logits at a time.

Shapes: M trained positions, C channels, V vocabulary.
"""

from typing import Any

import torch

from trainer.estimate import LOGITS_PART
from trainer.fused.layer import Norm
from trainer.kernels import ops_for


def summed_loss(hidden: torch.Tensor, norm: Norm, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The summed negative log-likelihood (float32 scalar) of targets [M] at hidden [M, C], before the last norm; head
    [V, C] is frozen. The gradient is computed in the forward pass, while the logits are there."""
    loss: torch.Tensor = _HeadLoss.apply(hidden, norm, head, targets)
    return loss


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden: torch.Tensor, norm: Norm, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        ops, wide = ops_for(hidden), torch.promote_types(hidden.dtype, torch.float32)
        wants_grad = ctx.needs_input_grad[0]
        total = hidden.new_zeros((), dtype=wide)
        grad = torch.empty_like(hidden) if wants_grad else None
        part = max(128, LOGITS_PART // (head.shape[0] * hidden.element_size()) // 128 * 128)
        for begin in range(0, len(hidden), part):
            x = hidden[begin : begin + part]
            logits = ops.rms_norm(x, norm.weight, norm.eps) @ head.t()
            total += ops.cross_entropy_(logits, targets[begin : begin + part], 1.0).sum()
            if grad is not None:
                grad[begin : begin + part] = ops.rms_norm_backward(logits @ head, x, norm.weight, norm.eps, None)
        ctx.grad = grad
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return ctx.grad.mul_(grad), None, None, None
