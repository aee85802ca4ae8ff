"""The loss at the end, over the positions that are trained only, a part of the logits at a time.

Shapes: B rows, T tokens, M trained positions, C channels, V vocabulary.
"""

from collections.abc import Callable
from typing import Any

import torch
from transformers.modeling_outputs import CausalLMOutputWithPast

from trainer.fused.layer import Norm
from trainer.kernels import ops_for
from trainer.sizing.estimate import LOGITS_PART

# classes of transformers whose logits are the head's product with the last hidden states, and nothing else
HEADS = frozenset({"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM", "Phi3ForCausalLM",
                   "GemmaForCausalLM"})  # fmt: skip


def has_plain_head(model: Any) -> bool:
    """Whether a model's loss can be computed here: its head is frozen, without adapter, and of this form."""
    if not hasattr(model, "get_base_model"):
        return False
    causal = model.get_base_model()
    head = getattr(causal, "lm_head", None)
    frozen = type(head) is torch.nn.Linear and head.bias is None and not head.weight.requires_grad
    return frozen and type(causal).__name__ in HEADS


def use_summed_loss(model: Any) -> None:
    """Make `model`, with a plain head, compute its loss here whenever a batch says which places are trained
    (trainer.data.collate); its layers stay those of transformers."""
    causal = model.get_base_model()
    take_targets(causal.lm_head, None)
    causal.forward = _HeadForward(causal)


def take_targets(head: Any, norm: Any) -> None:
    """Make a head return the summed loss where it is given targets. `norm`: the last norm, if it comes to it before
    that norm. It is a module's own forward pass: ZeRO-3 puts its weight together for it."""
    usual: Callable[..., torch.Tensor] = head.forward

    def forward(hidden: torch.Tensor, targets: torch.Tensor | None = None) -> torch.Tensor:
        if targets is None:
            return usual(hidden)
        return summed_loss(hidden, None if norm is None else Norm(norm), head.weight.detach(), targets)

    head.forward = forward


def mean_loss(
    causal: Any, hidden: torch.Tensor, labels: torch.Tensor, loss_at: torch.Tensor, number: Any
) -> CausalLMOutputWithPast:
    """The loss of a causal model whose head takes targets. hidden [B*T, C]; labels [B, T]; loss_at [M]: the places in
    B*T whose next token is trained; number: of trained tokens in the whole step, None: in this batch."""
    total = causal.lm_head(hidden.index_select(0, loss_at), targets=labels.flatten()[loss_at + 1])
    return CausalLMOutputWithPast(loss=total / (max(1, len(loss_at)) if number is None else number))


class _HeadForward:
    """In place of a causal model's forward."""

    def __init__(self, causal: Any) -> None:
        self.causal, self.usual = causal, causal.forward

    def __call__(
        self,
        input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        loss_at: torch.Tensor | None = None,
        num_items_in_batch: Any = None,
        **kwargs: Any,
    ) -> Any:
        """input_ids, labels [B, T]. Without loss_at, as in generation, the usual forward."""
        if labels is None or loss_at is None:
            return self.usual(input_ids=input_ids, labels=labels, **kwargs)
        hidden = self.causal.model(input_ids=input_ids, **kwargs).last_hidden_state.flatten(0, 1)
        return mean_loss(self.causal, hidden, labels, loss_at, num_items_in_batch)


def summed_loss(hidden: torch.Tensor, norm: Norm | None, head: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """The summed negative log-likelihood (float32 scalar) of targets [M] at hidden [M, C], before the norm if there is
    one; head [V, C] is frozen. The gradient is computed in the forward pass, while the logits are there."""
    loss: torch.Tensor = _HeadLoss.apply(hidden, norm, head, targets)
    return loss


class _HeadLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, norm: Norm | None, head: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        ops, wide = ops_for(hidden), torch.promote_types(hidden.dtype, torch.float32)
        wants_grad = ctx.needs_input_grad[0]
        total = hidden.new_zeros((), dtype=wide)
        grad = torch.empty_like(hidden) if wants_grad else None
        part = max(128, LOGITS_PART // (head.shape[0] * hidden.element_size()) // 128 * 128)
        for begin in range(0, len(hidden), part):
            x = hidden[begin : begin + part]
            logits = (x if norm is None else ops.rms_norm(x, norm.weight, norm.eps)) @ head.t()
            total += ops.cross_entropy_(logits, targets[begin : begin + part], 1.0).sum()
            if grad is not None:
                dx = logits @ head
                grad[begin : begin + part] = (
                    dx if norm is None else ops.rms_norm_backward(dx, x, norm.weight, norm.eps, None)
                )
        ctx.grad = grad
        return total

    @staticmethod
    def backward(ctx: Any, grad: torch.Tensor) -> tuple[torch.Tensor, None, None, None]:
        return ctx.grad.mul_(grad), None, None, None
