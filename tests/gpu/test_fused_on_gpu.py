"""The Triton kernels and the fused layers on a GPU: in bf16 they are as near to float32 as transformers' layers are."""

import pytest
import torch

from trainer.fused.apply import use_fused_layers
from trainer.fused.checkpointing import policy_named

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
DEVICE = torch.device("cuda")


def test_a_kernel_computes_what_its_twin_does():
    """In float32; products there are made of tf32."""
    from tests.trainer.kernel_distances import distances

    found = distances("cuda")
    assert found.pop("nf4_weight_with_adapter") < 2e-3
    assert found.pop("scaled_product") < 5e-3  # rounded to bf16 on either side
    assert {name: distance for name, distance in found.items() if not distance < 1e-5} == {}


def gradients_of(rows, policy=None, dtype=torch.bfloat16, *, qwen3=False):
    """All gradients of an adapter on a 4-bit base, end to end; with a policy through the fused layers."""
    from tests.trainer.test_fused_layers import QWEN3, batch_of, gradients, model_of, usual

    shape = {"hidden_size": 256, "intermediate_size": 512, **(QWEN3 if qwen3 else {})}
    model = model_of(quantised=True, dtype=dtype, **shape).to(DEVICE)
    batch = {name: value.to(DEVICE) if torch.is_tensor(value) else value for name, value in batch_of(*rows).items()}
    if policy is None:
        batch = usual(batch)
    else:
        use_fused_layers(model, policy_named(policy, DEVICE))
    with torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
        _, found = gradients(model, batch)
    return torch.cat([value.flatten().float() for _, value in sorted(found.items())])


@pytest.mark.parametrize("rows", [[(20, 12, 8), (30, 17)], [(48,), (48,)]], ids=["packed", "whole"])
@pytest.mark.parametrize("policy", ["none", "full", "offload"])
@pytest.mark.parametrize("qwen3", [False, True], ids=["llama", "qwen3"])
def test_gradients_are_as_near_to_float32_as_those_of_transformers(rows, policy, qwen3):
    exact = gradients_of(rows, dtype=torch.float32, qwen3=qwen3)
    usual = (gradients_of(rows, qwen3=qwen3) - exact).norm() / exact.norm()
    fused = (gradients_of(rows, policy, qwen3=qwen3) - exact).norm() / exact.norm()
    assert 0 < fused < 1.5 * usual
