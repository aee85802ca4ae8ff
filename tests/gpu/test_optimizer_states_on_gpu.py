"""AdamW's states in 8 bits and in pages on a GPU: near torch's AdamW, and read back as they were."""

import pytest
import torch

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
SIZE = 200_000  # bitsandbytes puts no small tensor into pages
KINDS = {"8bit": {"optim_bits": 8}, "paged": {"is_paged": True}}


def stepped(make, gradients, *, start=None, saved=None):
    """A parameter after as many steps, and its optimizer."""
    parameter = torch.nn.Parameter(torch.ones(1, SIZE, device="cuda") if start is None else start.clone())
    optimizer = make([parameter])
    if saved is not None:
        optimizer.load_state_dict(saved)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    torch.cuda.synchronize()
    return parameter.detach().clone(), optimizer


@pytest.mark.parametrize("states", KINDS)
def test_states_are_near_torchs_and_read_back_as_they_were(states):
    from trainer.checkpoints.saver import on_host
    from trainer.training.optimizer_states import PagedAdamW

    def make(parameters):
        return PagedAdamW(parameters, lr=1e-2, weight_decay=0.0, **KINDS[states])

    gradients = torch.randn(6, 1, SIZE, device="cuda", generator=torch.Generator("cuda").manual_seed(1))
    wanted, _ = stepped(lambda given: torch.optim.AdamW(given, lr=1e-2, weight_decay=0.0), gradients)
    whole, _ = stepped(make, gradients)
    moved = (wanted - 1).norm()
    assert (whole - wanted).norm() < {"8bit": 0.1, "paged": 1e-4}[states] * moved
    half, optimizer = stepped(make, gradients[:3])
    saved = on_host(optimizer.state_dict(), {})
    torch.cuda.synchronize()
    again, optimizer = stepped(make, gradients[3:], start=half, saved=saved)
    assert torch.equal(again, whole)
    (state,) = optimizer.state.values()
    assert getattr(state["state1"], "is_paged", False) == (states == "paged")
