"""FLOPs of a token, counted by hand for a model of known shape."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

from trainer.config.job import Shape
from trainer.new_model.create import new_model
from trainer.sizing.flops import flops_of, flops_per_token, mean_context, peak_flops

SHAPE = Shape(hidden_size=32, intermediate_size=64, num_layers=2, num_heads=4, num_kv_heads=2, vocab_size=400,
              max_positions=64)
LAYER = 32 * 32 + 2 * 16 * 32 + 32 * 32 + 3 * 32 * 64  # q; k, v; o; gate, up, down
MATRICES = 2 * LAYER + 400 * 32  # and the head
ATTENTION = 12 * 10 * 32 * 2  # of 10 tokens, in two layers


def test_every_weight_trained():
    assert flops_per_token(new_model(SHAPE, 1), 10) == 6 * MATRICES + ATTENTION


def test_a_frozen_base_has_no_weight_gradients():
    model = get_peft_model(new_model(SHAPE, 1), LoraConfig(r=4, target_modules=["q_proj"]))
    adapters = 2 * 2 * 4 * 32
    assert flops_per_token(model, 10) == 4 * MATRICES + 6 * adapters + ATTENTION


def test_four_bit_weights_count_as_what_they_stand_for():
    bitsandbytes = pytest.importorskip("bitsandbytes")
    model = new_model(SHAPE, 1).requires_grad_(False)
    whole = flops_per_token(model, 10)
    layer = model.model.layers[0].mlp
    packed = bitsandbytes.nn.Linear4bit(32, 64, bias=False, quant_type="nf4")
    packed.load_state_dict(layer.up_proj.state_dict())
    layer.up_proj = packed.to("cpu")
    packed(torch.ones(1, 32))  # packs them
    assert packed.weight.numel() != 32 * 64
    assert flops_per_token(model, 10) == whole


def test_a_token_sees_those_before_it_in_its_sample():
    assert mean_context(np.array([4], dtype=np.int32)) == (1 + 2 + 3 + 4) / 4
    assert mean_context(np.array([1, 3], dtype=np.int32)) == (1 + 1 + 2 + 3) / 4


@pytest.mark.parametrize(
    ("name", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", 989),
        ("NVIDIA H100 PCIe", 756),
        ("NVIDIA H200", 989),
        ("NVIDIA A100-SXM4-80GB", 312),
        ("NVIDIA A100-PCIE-40GB", 312),
        ("NVIDIA A100 80GB PCIe", 312),
        ("NVIDIA L40S", 362),
        ("NVIDIA GeForce RTX 4090", 165),
    ],
)
def test_rates_by_the_drivers_names(name, tera):
    assert peak_flops(name) == tera * 1e12


@pytest.mark.parametrize("name", ["NVIDIA H100 80GB HBM3 MIG 1g.10gb", "NVIDIA A10G", "NVIDIA GeForce RTX 4090 D",
                                  "Tesla V100-SXM2-32GB", "AMD Instinct MI300X"])
def test_an_unknown_card_has_no_rate(name):
    assert peak_flops(name) is None


def test_a_cpu_has_no_utilisation():
    assert flops_of(new_model(SHAPE, 1), np.array([4]), torch.device("cpu")) is None
