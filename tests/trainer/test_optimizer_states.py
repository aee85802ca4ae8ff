"""AdamW's states in 8 bits and in pages: a run goes on from them, and the estimate of them is what they take."""

from types import SimpleNamespace

import pytest
import torch
from transformers import TrainingArguments

from tests.trainer import warm
from tests.trainer.conftest import QUICKSTART
from trainer.errors import ConfigError
from trainer.node.ranks import Place
from trainer.sizing.state_bytes import MOMENTS, MOMENTS_8BIT
from trainer.training.loop import CheckedTrainer
from trainer.training.optimizer_states import PagedAdamW, optimizer_name

CPU, GPU = (Place(0, 0, 1, torch.device(kind)) for kind in ("cpu", "cuda"))


def job(folder, base, **lora):
    """With adapters of a layer that are large enough to be held in 8 bits."""
    return {
        "settings": {"seed": 7, "output_dir": str(folder / "out")},
        "model": {"dtype": "fp32", "gradient_checkpointing": False, "path": str(base), "quantization": "none",
                  "lora": {"r": 32, "dropout": 0.0, **lora}},
        "data": {"sources": [{"path": str(QUICKSTART / "facts.jsonl"), "format": "messages"}], "max_length": 64},
        "optimizer": {"lr": 2e-3, "max_steps": 4, "batch_size": 8, "accumulation": 1, "states": "8bit",
                      "deepspeed": None},
        "runtime": {"log_every": 1, "save_every": 2, "keep": 9, "sample_prompts": []},
    }  # fmt: skip


@pytest.mark.parametrize("lora", [{}, {"lr_ratio": 4.0}], ids=["plain", "lora+"])
def test_a_run_with_8_bit_states_goes_on_where_it_stopped(tiny_base, tmp_path, lora):
    whole, part = tmp_path / "whole", tmp_path / "part"
    losses, adapter = warm.trained(whole, job(whole, tiny_base, **lora))
    assert losses[-1] < losses[0]
    warm.stopped_at(whole, part, 2)
    again, other = warm.trained(part, job(part, tiny_base, **lora))
    assert again == losses[2:]
    assert all(adapter[key].equal(other[key]) for key in adapter)
    held = tensors(torch.load(part / "out/checkpoint-4/optimizer.pt", weights_only=True)["state"])
    moments = [tensor for tensor in held if tensor.dtype == torch.uint8]
    assert len(moments) == 8  # two of the A and the B matrices of each of two layers
    number = sum(tensor.numel() for tensor in moments) / 2
    scales = sum(tensor.numel() for tensor in held if tensor.dtype == torch.float32 and tensor.numel() != 256)
    assert (number * 2 + scales * 4) / number == pytest.approx(MOMENTS_8BIT, rel=0.01)


def tensors(state):
    if torch.is_tensor(state):
        return [state]
    return [tensor for value in state.values() for tensor in tensors(value)] if isinstance(state, dict) else []


def test_what_transformers_is_asked_for():
    assert [optimizer_name(states, GPU) for states in ("float32", "8bit", "paged")] == [
        "adamw_torch_fused", "adamw_8bit", "paged_adamw_32bit"]  # fmt: skip
    assert [optimizer_name(states, CPU) for states in ("float32", "8bit")] == ["adamw_torch", "adamw_8bit"]


def test_pages_need_a_gpu():
    with pytest.raises(ConfigError, match=r"optimizer\.states: got paged, but this job trains on the CPU"):
        optimizer_name("paged", CPU)


def test_states_in_pages_are_asked_for_and_read_back(tmp_path, recwarn):
    """As PagedAdamW, which goes on where another one stopped; on a CPU without pages."""
    args = TrainingArguments(output_dir=str(tmp_path), optim="paged_adamw_32bit", use_cpu=True, report_to=[])
    kind, settings = CheckedTrainer.get_optimizer_cls_and_kwargs(args, SimpleNamespace())
    assert (kind, settings["is_paged"], settings["optim_bits"]) == (PagedAdamW, True, 32)
    gradients = torch.randn(4, 1, 5000, generator=torch.Generator().manual_seed(1))
    stepped, saved = step(kind, settings, gradients[:2])
    whole, state = step(kind, settings, gradients)
    again, _ = step(kind, settings, gradients[2:], start=stepped, saved=saved)
    assert torch.equal(again, whole)
    quantised = state["state"][0]["__bnb_optimizer_quant_state__"]
    assert sum(value.nbytes for value in quantised.values()) == MOMENTS * 5000


def step(kind, settings, gradients, start=None, saved=None):
    """A parameter after as many steps, and the optimizer's state."""
    parameter = torch.nn.Parameter(torch.ones(1, 5000) if start is None else start.clone())
    optimizer = kind([parameter], **settings)
    if saved is not None:
        optimizer.load_state_dict(saved)
    for gradient in gradients:
        parameter.grad = gradient.clone()
        optimizer.step()
    return parameter.detach().clone(), optimizer.state_dict()
