"""Packed samples on a GPU, in bf16: as exact as each alone, and unmoved by what else is in the row."""

import numpy as np
import pytest
import torch

from trainer.config.job import Shape
from trainer.data.collate import Collator
from trainer.data.rows import Row
from trainer.models.attention import use_varlen
from trainer.new_model.create import new_model

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
SHAPE = Shape(hidden_size=512, intermediate_size=1408, num_layers=4, num_heads=8, num_kv_heads=2, vocab_size=4000,
              max_positions=1024)  # fmt: skip
LENGTHS = (301, 128, 17, 466)


@pytest.fixture(scope="module")
def models():
    """The same weights in float32, with the usual attention, and in bf16, with the packed one."""
    exact = new_model(SHAPE, 0).cuda().eval()
    quick = new_model(SHAPE, 0).cuda().bfloat16().eval()
    use_varlen(quick)
    return exact, quick


@pytest.fixture
def samples():
    rng = np.random.default_rng(0)
    return [rng.integers(3, 4000, length).astype(np.int32) for length in LENGTHS]


def batch_of(rows, width=1024):
    batch = Collator(2, width)([Row(number, row, []) for number, row in enumerate(rows)])
    batch = {name: value.cuda() if torch.is_tensor(value) else value for name, value in batch.items()}
    return {name: value for name, value in batch.items() if name not in ("rows", "labels", "loss_at")}


@torch.no_grad()
def logits(model, rows, width=1024):
    return model(**batch_of(rows, width), use_cache=False).logits


@torch.no_grad()
def alone(model, sample):
    return model(input_ids=torch.from_numpy(sample).long()[None].cuda(), use_cache=False).logits[0]


def test_packed_logits_are_as_near_to_float32_as_those_of_samples_alone(models, samples):
    exact, quick = models
    packed = logits(quick, [samples])[0]
    start, packed_error, alone_error = 0, [], []
    for sample in samples:
        wanted = alone(exact, sample)
        packed_error.append((packed[start : start + len(sample)].float() - wanted).square().mean())
        alone_error.append((alone(quick, sample).float() - wanted).square().mean())
        start += len(sample)
    assert sum(packed_error) <= 1.05 * sum(alone_error)
    assert sum(alone_error) > 0


def test_changing_a_sample_leaves_its_neighbours_logits_bit_for_bit(models, samples):
    before = logits(models[1], [samples])[0]
    other = [samples[0], samples[1][::-1].copy(), *samples[2:]]
    after = logits(models[1], [other])[0]
    first, second = LENGTHS[0], LENGTHS[0] + LENGTHS[1]
    assert torch.equal(before[:first], after[:first])
    assert torch.equal(before[second : sum(LENGTHS)], after[second : sum(LENGTHS)])
    assert not torch.equal(before[first:second], after[first:second])


def test_rows_of_a_batch_are_apart_and_gradients_flow(models, samples):
    quick = models[1]
    both = logits(quick, [samples[:2], samples[2:]])
    assert torch.equal(both[1, : LENGTHS[2]], logits(quick, [samples[2:], samples[:2]])[0, : LENGTHS[2]])
    quick(**batch_of([samples[:2], samples[2:]]), use_cache=False).logits.float().logsumexp(-1).mean().backward()
    gradients = [parameter.grad for parameter in quick.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    assert quick.model.layers[0].self_attn.k_proj.weight.grad.abs().max() > 0
