"""The fused layers against transformers' and PEFT's own, in float32 on the CPU, where nothing is rounded away."""

import pytest
import torch
from bitsandbytes.nn import Linear4bit, Params4bit
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Phi3Config,
    Phi3ForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from trainer.config.job import Lora
from trainer.data.collate import Collator
from trainer.data.rows import Row
from trainer.fused import layer
from trainer.fused.apply import obstacle, use_fused_layers
from trainer.fused.checkpointing import POLICIES, ActivationPolicy
from trainer.models.load import keep_layout
from trainer.models.lora import attach_lora

SIZES = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
         "vocab_size": 400, "max_position_embeddings": 512, "rms_norm_eps": 1e-5}  # fmt: skip


LLAMA = (LlamaConfig, LlamaForCausalLM)
QWEN3 = {"family": (Qwen3Config, Qwen3ForCausalLM), "head_dim": 32}


def model_of(*, quantised=False, dropout=0.0, dtype=torch.float32, kv_heads=2, targets=None, family=LLAMA, **changes):
    """A random model with an adapter that already changes something; always the same."""
    torch.manual_seed(0)
    config, kind = family
    model = kind(config(**{**SIZES, "num_key_value_heads": kv_heads, **changes})).to(dtype)
    if quantised:
        for name, module in list(model.named_modules()):
            if type(module) is torch.nn.Linear and name != "lm_head":
                model.set_submodule(name, quantised_linear(module))
        model.is_loaded_in_4bit = True
    adapted = attach_lora(keep_layout(model), Lora(r=8, alpha=16, dropout=dropout, targets=targets), "base")
    for name, parameter in adapted.named_parameters():
        if "lora_B" in name:
            parameter.data.normal_(0, 0.1)
        if name.endswith("bias"):
            parameter.data.normal_(0, 0.5)
        if name.endswith(("q_norm.weight", "k_norm.weight")):
            parameter.data.uniform_(0.5, 2)
    return adapted.to(dtype) if dtype == torch.float64 else adapted


def quantised_linear(module):
    dtype = module.weight.dtype
    new = Linear4bit(module.in_features, module.out_features, module.bias is not None, compute_dtype=dtype,
                     quant_type="nf4", quant_storage=dtype)  # fmt: skip
    new.weight = Params4bit(module.weight.data, requires_grad=False, quant_type="nf4", quant_storage=dtype,
                            module=new).to("cpu")  # fmt: skip
    new.bias = module.bias
    return new


def batch_of(*rows, width=48):
    """Rows of samples of these lengths; some tokens are not trained, the last ones are padding."""
    generator = torch.Generator().manual_seed(3)

    def sample(length):
        tokens = torch.randint(3, 400, (length,), generator=generator, dtype=torch.int32)
        return torch.where(torch.arange(length) % 3 == 0, ~tokens, tokens).numpy()

    batch = Collator(2, width)([Row(number, [sample(n) for n in row], []) for number, row in enumerate(rows)])
    batch.pop("rows")
    return batch


PACKED = [(20, 12, 8), (30, 17)]
WHOLE = [(48,), (48,)]
USUAL = ("input_ids", "labels", "position_ids")


def gradients(model, batch):
    """(loss, gradients by name) of one backward pass, in training mode."""
    model.train()
    loss = model(**batch, use_cache=False).loss
    loss.backward()
    names = {id(value): name for name, value in model.named_parameters()}
    found = {id(value): value.grad for value in model.parameters() if value.grad is not None}
    for module in model.modules():
        if hasattr(module, "flat_adapters"):
            found |= of_matrices(module.flat_adapters, found)
    return loss.detach(), {names[key]: grad for key, grad in found.items()}


def of_matrices(adapters, found):
    """The gradients that a layer's two parameters have, as those of PEFT's matrices."""
    grads = {}
    for flat, matrices in zip(adapters.parameters, adapters.matrices, strict=True):
        parts = found.pop(id(flat)).flatten().split([matrix.numel() for matrix in matrices])
        grads |= {id(matrix): part.view(matrix.shape) for matrix, part in zip(matrices, parts, strict=True)}
    return grads


def assert_same(found, wanted, tolerance=1e-5):
    assert found[0].item() == pytest.approx(wanted[0].item(), rel=tolerance)
    assert found[1].keys() == wanted[1].keys() != set()
    for name, value in wanted[1].items():
        assert (found[1][name] - value).norm() <= tolerance * value.norm(), name


def usual(batch):
    return {name: batch[name] for name in USUAL}


@pytest.mark.parametrize("rows", [PACKED, WHOLE], ids=["packed", "whole"])
@pytest.mark.parametrize("quantised", [True, False], ids=["nf4", "dense"])
@pytest.mark.parametrize("policy", POLICIES)
def test_loss_and_gradients_are_those_of_transformers_and_peft(policy, quantised, rows, monkeypatch):
    """Whatever is kept, and with the tokens in several parts."""
    batch = batch_of(*rows)
    wanted = gradients(model_of(quantised=quantised), usual(batch))
    monkeypatch.setattr(layer, "FEED_FORWARD_PART", 40)
    model = model_of(quantised=quantised)
    use_fused_layers(model, ActivationPolicy(policy))
    assert_same(gradients(model, batch), wanted)


@pytest.mark.parametrize("rows", [PACKED, WHOLE], ids=["packed", "whole"])
@pytest.mark.parametrize("policy", POLICIES)
def test_heads_with_a_norm_of_their_own_too(policy, rows):
    """Qwen3's; in float64."""
    batch, shape = batch_of(*rows), {**QWEN3, "dtype": torch.float64}
    wanted = gradients(model_of(**shape), usual(batch))
    model = model_of(**shape)
    assert obstacle(model) is None
    use_fused_layers(model, ActivationPolicy(policy))
    assert_same(gradients(model, batch), wanted)


@pytest.mark.parametrize("changes", [
    {"attention_bias": True, "kv_heads": 4},  # InternLM v1
    {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, "max_position_embeddings": 16},
    {"targets": ["q_proj", "v_proj"]},
    {"targets": ["up_proj", "o_proj"]},
    {"tie_word_embeddings": True},
    {"head_dim": 32},
    {"family": (MistralConfig, MistralForCausalLM), "sliding_window": None},
    {"family": (Qwen2Config, Qwen2ForCausalLM)},
    {**QWEN3, "attention_bias": True, "targets": ["k_proj", "o_proj"]},
    {"family": (Phi3Config, Phi3ForCausalLM), "pad_token_id": 2},
    {"family": (Phi3Config, Phi3ForCausalLM), "pad_token_id": 2, "targets": ["qkv_proj", "down_proj"]},
], ids=["v1", "ntk", "q_v", "up_o", "tied", "wide_heads", "mistral", "qwen2", "qwen3", "phi3", "joined"])  # fmt: skip
def test_other_shapes_and_targets_too(changes):
    """In float64: small gradients are not lost among large ones."""
    batch = batch_of(*PACKED)
    wanted = gradients(model_of(dtype=torch.float64, **changes), usual(batch))
    model = model_of(dtype=torch.float64, **changes)
    assert obstacle(model) is None
    use_fused_layers(model, ActivationPolicy("full"))
    assert_same(gradients(model, batch), wanted)


@pytest.mark.parametrize("policy", POLICIES)
def test_with_dropout_the_gradient_is_the_slope_of_the_loss(policy, monkeypatch):
    """In float64, along a random direction, the same values dropped every time, in every part."""
    monkeypatch.setattr(layer, "FEED_FORWARD_PART", 40)
    model, batch = model_of(dropout=0.3, dtype=torch.float64), batch_of(*PACKED)
    use_fused_layers(model, ActivationPolicy(policy))

    def loss_of():
        torch.manual_seed(5)
        return model(**batch, use_cache=False).loss

    model.train()
    loss_of().backward()
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    direction = [torch.randn_like(parameter) for parameter in trained]
    slope = sum((parameter.grad * way).sum() for parameter, way in zip(trained, direction, strict=True))
    step, ends = 1e-5, []
    with torch.no_grad():
        for sign in (1, -2):
            for parameter, way in zip(trained, direction, strict=True):
                parameter += sign * step * way
            ends.append(loss_of())
    assert ((ends[0] - ends[1]) / (2 * step)).item() == pytest.approx(slope.item(), rel=1e-6)


def test_dropout_drops_in_training_only_and_other_values_every_step():
    model, batch = model_of(dropout=0.5), batch_of(*PACKED)
    use_fused_layers(model, ActivationPolicy("full"))
    model.eval()
    with torch.no_grad():
        wanted = model_of(dropout=0.5).eval()(**usual(batch), use_cache=False).loss
        assert model(**batch, use_cache=False).loss.item() == pytest.approx(wanted.item(), rel=1e-5)
        model.train()
        first, second = (model(**batch, use_cache=False).loss.item() for _ in range(2))
    assert first != second != wanted.item()


def test_a_small_update_of_bf16_weights_is_not_rounded_away():
    """Added to W it would be: W is on bf16's grid already."""
    batch = batch_of(*PACKED)

    def loss_of(scale):
        model = model_of(dtype=torch.bfloat16)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.mul_(scale)
        use_fused_layers(model, ActivationPolicy("full"))
        return gradients(model.train(), batch)[0].item()

    assert loss_of(0.02) != loss_of(0.0)


@pytest.mark.parametrize("policy", ["none", "full"])
def test_products_in_fp8_are_near_those_in_bf16_and_adapters_are_not_rounded(policy):
    """On bf16's side of the error that NF4 itself makes (some 10 %); a small update still changes the loss."""
    batch = batch_of(*PACKED)

    def outcome(float8, scale=1.0):
        model = model_of(quantised=True, dtype=torch.bfloat16, hidden_size=256, intermediate_size=512)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.mul_(scale)
        use_fused_layers(model, ActivationPolicy(policy), float8=float8)
        return gradients(model, batch)

    (loss, found), (wanted_loss, wanted) = outcome(True), outcome(False)
    assert loss.item() == pytest.approx(wanted_loss.item(), rel=2e-3)
    far = [((found[name] - value).norm() / value.norm()).item() for name, value in wanted.items()]
    assert 1e-3 < max(far) < 0.2
    assert outcome(True, 0.02)[0] != outcome(True, 0.0)[0]


def test_the_loss_is_normalised_by_the_number_it_is_given():
    """As transformers passes it for the whole step; without one, by the batch's own."""
    model, batch = model_of(), batch_of(*PACKED)
    use_fused_layers(model, ActivationPolicy("none"))
    mean = model(**batch, use_cache=False).loss
    given = model(**batch, use_cache=False, num_items_in_batch=torch.tensor(7)).loss
    assert given.item() == pytest.approx(mean.item() * len(batch["loss_at"]) / 7)


def test_a_batch_without_a_trained_token_has_no_loss():
    model, batch = model_of(), batch_of(*PACKED)
    batch["labels"].fill_(-100)
    batch["loss_at"] = batch["loss_at"][:0]
    use_fused_layers(model, ActivationPolicy("full"))
    loss, found = gradients(model, batch)
    assert loss == 0
    assert all(not value.any() for value in found.values())


def test_generation_is_as_before():
    ids = torch.randint(3, 400, (1, 9), generator=torch.Generator().manual_seed(1))
    asked = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 2}
    wanted = model_of(quantised=True).eval().generate(ids, **asked)
    model = model_of(quantised=True).eval()
    use_fused_layers(model, ActivationPolicy("none"))
    assert torch.equal(model.generate(ids, **asked), wanted)


def obstacle_with(change, **shape):
    model = model_of(**shape)
    change(model)
    return obstacle(model)


def test_what_a_model_lacks_is_named():
    assert obstacle(model_of(quantised=True)) is None
    assert obstacle(model_of().get_base_model()) == "every parameter is trained"
    assert "SiLU" in obstacle(model_of(hidden_act="gelu"))
    head = "base_model.model.lm_head.weight is trained"
    assert obstacle_with(lambda model: model.get_base_model().lm_head.requires_grad_(True)) == head


def test_layers_of_another_kind_are_left_to_transformers():
    model = model_of()
    model.get_base_model().model.layers[1] = torch.nn.Identity()
    assert "Identity" in obstacle(model)
    model = model_of()
    model.get_base_model().config.sliding_window = 16
    assert obstacle(model) == "sliding-window attention"


@pytest.mark.parametrize(("change", "problem"), [
    ({"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5}}, "in part"),
    ({"resid_pdrop": 0.1}, "dropout outside of adapters"),
    ({"sliding_window": 16}, "sliding-window"),
], ids=["partial", "dropout", "window"])  # fmt: skip
def test_what_phi3_has_beside_llamas_layers_is_named(change, problem):
    assert problem in obstacle(model_of(family=(Phi3Config, Phi3ForCausalLM), pad_token_id=2, **change))
