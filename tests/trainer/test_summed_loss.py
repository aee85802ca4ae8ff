"""The loss over trained positions only, for models whose layers stay those of transformers: the same loss and gradients
as transformers' own, which makes every logit."""

import pytest
import torch
from transformers import GemmaConfig, GemmaForCausalLM, Phi3Config, Phi3ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from tests.trainer.test_fused_layers import LLAMA, PACKED, WHOLE, assert_same, batch_of, gradients, model_of, usual
from trainer.fused import head
from trainer.fused.head import has_plain_head, use_summed_loss

FAMILIES = {
    "llama": {"family": LLAMA},
    "qwen3": {"family": (Qwen3Config, Qwen3ForCausalLM), "head_dim": 16},
    "phi3": {"family": (Phi3Config, Phi3ForCausalLM), "pad_token_id": 2},
    "gemma, tied": {"family": (GemmaConfig, GemmaForCausalLM), "head_dim": 16},
}


@pytest.mark.parametrize("rows", [PACKED, WHOLE], ids=["packed", "whole"])
@pytest.mark.parametrize("name", FAMILIES)
def test_loss_and_gradients_are_those_of_all_logits(name, rows, monkeypatch):
    """The logits in several parts."""
    monkeypatch.setattr(head, "LOGITS_PART", 1)
    batch = batch_of(*rows, width=300)
    wanted = gradients(model_of(dtype=torch.float64, **FAMILIES[name]), usual(batch))
    model = model_of(dtype=torch.float64, **FAMILIES[name])
    assert has_plain_head(model)
    use_summed_loss(model)
    assert_same(gradients(model, {**usual(batch), "loss_at": batch["loss_at"]}), wanted)


def test_it_never_holds_the_logits_of_positions_that_are_not_trained():
    batch, made = batch_of(*PACKED), []
    model = model_of()
    use_summed_loss(model)
    model.get_base_model().lm_head.register_forward_hook(lambda module, given, out: made.append(out.numel()))
    model(**usual(batch), loss_at=batch["loss_at"])
    assert made == [1], "one number, the sum"


def test_generation_has_all_its_logits():
    ids = torch.randint(3, 400, (1, 9), generator=torch.Generator().manual_seed(1))
    asked = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 2}
    wanted = model_of().eval().generate(ids, **asked)
    model = model_of().eval()
    use_summed_loss(model)
    assert torch.equal(model.generate(ids, **asked), wanted)


def test_heads_that_are_trained_or_scaled_are_left_to_transformers():
    assert has_plain_head(model_of())
    assert not has_plain_head(model_of().get_base_model()), "every parameter is trained"
    trained = model_of()
    trained.get_base_model().lm_head.weight.requires_grad_(True)
    assert not has_plain_head(trained)
    biased = model_of()
    biased.get_base_model().lm_head = torch.nn.Linear(64, 400)
    assert not has_plain_head(biased)
