"""InternLM2's layout read into Llama classes, against InternLM2's arithmetic written here from its facts."""

import json

import pytest
import torch
from safetensors.torch import save_file

from trainer.config.job import Shape, TrainConfig
from trainer.errors import ConfigError
from trainer.families.internlm2_layout import fuse_wqkv, split_wqkv
from trainer.models.load import load_model
from trainer.models.lora import attach_lora, target_names
from trainer.new_model.create import new_model, save_internlm2

CPU = torch.device("cpu")
GROUPS = [(4, 4), (4, 2), (8, 2), (6, 1)]


def reference_logits(weights, ids, *, heads, kv_heads, layers, theta=1e6, eps=1e-5, scaling=None, max_positions=64):
    """InternLM2 in float32, loops instead of tricks. ids: [T] -> logits [T, vocab]."""
    hidden = weights["model.tok_embeddings.weight"][ids]
    length, width = hidden.shape
    head = width // heads
    base = theta
    if scaling and length > max_positions:  # dynamic NTK: the base grows with the length
        base = theta * ((scaling * length / max_positions) - (scaling - 1)) ** (head / (head - 2))
    inverse = 1.0 / base ** (torch.arange(0, head, 2).float() / head)
    angles = torch.outer(torch.arange(length).float(), inverse)
    cos, sin = torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()

    def norm(x, weight):
        return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + eps)

    def rotate(x):
        return x * cos + torch.cat([-x[:, head // 2 :], x[:, : head // 2]], -1) * sin

    for layer in range(layers):
        at = f"model.layers.{layer}."
        x = norm(hidden, weights[at + "attention_norm.weight"])
        fused = (x @ weights[at + "attention.wqkv.weight"].T).view(length, kv_heads, heads // kv_heads + 2, head)
        outs = []
        for query in range(heads):
            group, place = divmod(query, heads // kv_heads)
            q, k, v = rotate(fused[:, group, place]), rotate(fused[:, group, -2]), fused[:, group, -1]
            scores = (q @ k.T / head**0.5).masked_fill(torch.triu(torch.ones(length, length), 1).bool(), float("-inf"))
            outs.append(scores.softmax(-1) @ v)
        hidden = hidden + torch.cat(outs, -1) @ weights[at + "attention.wo.weight"].T
        x = norm(hidden, weights[at + "ffn_norm.weight"])
        gate, up = x @ weights[at + "feed_forward.w1.weight"].T, x @ weights[at + "feed_forward.w3.weight"].T
        hidden = hidden + (torch.nn.functional.silu(gate) * up) @ weights[at + "feed_forward.w2.weight"].T
    return norm(hidden, weights["model.norm.weight"]) @ weights["output.weight"].T


def write_checkpoint(folder, heads, kv_heads, scaling=None, seed=0):
    """A random checkpoint under InternLM2's own names, written without our code."""
    torch.manual_seed(seed)
    width, inner, vocab, layers, head = heads * 8, 40, 50, 2, 8
    shapes = {
        "model.tok_embeddings.weight": (vocab, width),
        "output.weight": (vocab, width),
        "model.norm.weight": (width,),
    }
    for layer in range(layers):
        at = f"model.layers.{layer}."
        shapes |= {
            at + "attention.wqkv.weight": ((heads + 2 * kv_heads) * head, width),
            at + "attention.wo.weight": (width, width),
            at + "feed_forward.w1.weight": (inner, width),
            at + "feed_forward.w3.weight": (inner, width),
            at + "feed_forward.w2.weight": (width, inner),
            at + "attention_norm.weight": (width,),
            at + "ffn_norm.weight": (width,),
        }
    weights = {name: torch.randn(shape) * 0.2 for name, shape in shapes.items()}
    save_file(weights, folder / "model.safetensors")
    config = {
        "model_type": "internlm2",
        "architectures": ["InternLM2ForCausalLM"],
        "vocab_size": vocab,
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "hidden_act": "silu",
        "max_position_embeddings": 64,
        "rms_norm_eps": 1e-5,
        "rope_theta": 1e6,
        "bias": False,
        "rope_scaling": {"type": "dynamic", "factor": scaling} if scaling else None,
        "tie_word_embeddings": False,
    }
    (folder / "config.json").write_text(json.dumps(config))
    return weights


def job(path, **model):
    return TrainConfig.model_validate(
        {
            "model": {"path": str(path), "quantization": "none", "dtype": "fp32", **model},
            "data": {"sources": [{"path": "x"}]},
        }
    )


@pytest.mark.parametrize(("heads", "kv_heads"), GROUPS)
def test_logits_equal_internlm2s_own_arithmetic(heads, kv_heads, tmp_path):
    weights = write_checkpoint(tmp_path, heads, kv_heads)
    ids = torch.randint(0, 50, (23,))
    with torch.no_grad():
        ours = load_model(job(tmp_path), CPU)(input_ids=ids[None]).logits[0]
    torch.testing.assert_close(
        ours, reference_logits(weights, ids, heads=heads, kv_heads=kv_heads, layers=2), atol=1e-5, rtol=0
    )


@pytest.mark.parametrize("length", [40, 100])
def test_dynamic_ntk_grows_the_base_past_max_positions(length, tmp_path):
    weights = write_checkpoint(tmp_path, 4, 2, scaling=2.0)
    ids = torch.randint(0, 50, (length,))
    with torch.no_grad():
        ours = load_model(job(tmp_path), CPU)(input_ids=ids[None]).logits[0]
    expected = reference_logits(weights, ids, heads=4, kv_heads=2, layers=2, scaling=2.0)
    torch.testing.assert_close(ours, expected, atol=2e-5, rtol=0)


@pytest.mark.parametrize(("heads", "kv_heads"), GROUPS)
def test_split_and_fuse_are_inverse_to_the_bit(heads, kv_heads):
    fused = torch.randn((heads + 2 * kv_heads) * 8, 24)
    parts = split_wqkv(fused, heads, kv_heads)
    assert [part.shape[0] for part in parts] == [heads * 8, kv_heads * 8, kv_heads * 8]
    assert torch.equal(fuse_wqkv(*parts, heads, kv_heads), fused)


def test_a_saved_model_comes_back_to_the_bit(tmp_path):
    model = new_model(
        Shape(hidden_size=32, intermediate_size=40, num_layers=2, num_heads=4, num_kv_heads=2, vocab_size=300), 3
    )
    save_internlm2(model.state_dict(), model.config, tmp_path, [2])
    again = load_model(job(tmp_path), CPU)
    assert {
        name: tensor.sum().item() for name, tensor in model.state_dict().items()
    }.keys() == again.state_dict().keys()
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())


def test_nf4_holds_all_linears_but_the_head_in_four_bits(tmp_path):
    write_checkpoint(tmp_path, 8, 2)
    exact, four = load_model(job(tmp_path), CPU), load_model(job(tmp_path, quantization="nf4", dtype="bf16"), CPU)
    kinds = {
        name.rpartition(".")[2]: type(module).__name__
        for name, module in four.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert kinds.pop("lm_head") == "Linear"
    assert set(kinds.values()) == {"Linear4bit"}
    ids = torch.randint(0, 50, (1, 12))
    with torch.no_grad():
        close = torch.nn.functional.cosine_similarity(
            exact(input_ids=ids).logits, four(input_ids=ids).logits.float(), dim=-1
        )
    assert close.mean() > 0.95


def test_answering_leaves_four_bit_weights_as_they_were(tmp_path):
    write_checkpoint(tmp_path, 8, 2)
    model = load_model(job(tmp_path, quantization="nf4", dtype="bf16"), CPU)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    with torch.no_grad():
        model.eval()(input_ids=torch.randint(0, 50, (1, 12)))
    assert all(
        torch.equal(parameter.view(torch.uint8), before[name].view(torch.uint8))
        for name, parameter in model.named_parameters()
    )


def test_lora_takes_every_linear_but_the_head(tmp_path):
    write_checkpoint(tmp_path, 4, 2)
    config = job(tmp_path)
    model = load_model(config, CPU)
    assert target_names(model) == ["down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj"]
    names = [
        name
        for name, parameter in attach_lora(model, config.model.lora, "base").named_parameters()
        if parameter.requires_grad
    ]
    assert len(names) == 2 * 7 * 2
    assert not [name for name in names if "lm_head" in name]


def test_an_unknown_lora_target_lists_the_known_ones(tmp_path):
    write_checkpoint(tmp_path, 4, 2)
    config = job(tmp_path, lora={"targets": ["wqkv"]})
    with pytest.raises(ConfigError, match="got wqkv, allowed: down_proj, gate_proj"):
        attach_lora(load_model(config, CPU), config.model.lora, "base")


def test_a_missing_weight_is_named(tmp_path):
    weights = write_checkpoint(tmp_path, 4, 2)
    del weights["model.layers.1.attention.wo.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(
        ConfigError, match=r"1 weights are missing, the first is model.layers.1.self_attn.o_proj.weight"
    ):
        load_model(job(tmp_path), CPU)


def test_a_wrong_shape_is_named(tmp_path):
    weights = write_checkpoint(tmp_path, 4, 2)
    weights["output.weight"] = torch.zeros(49, 32)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(
        ConfigError, match=r"output.weight: got shape \[49, 32\] for lm_head.weight, allowed: \[50, 32\]"
    ):
        load_model(job(tmp_path), CPU)


def test_internlm_v1_is_a_llama_with_biases(tmp_path):
    torch.manual_seed(0)
    model = new_model(
        Shape(hidden_size=32, intermediate_size=40, num_layers=2, num_heads=4, num_kv_heads=4, vocab_size=300), 1
    )
    model.config.attention_bias = True
    model = type(model)(model.config)
    weights = {name: torch.randn_like(tensor) * 0.1 for name, tensor in model.state_dict().items()}
    model.load_state_dict(weights)
    save_file(
        {**weights, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(4)}, tmp_path / "model.safetensors"
    )
    raw = {
        "model_type": "internlm",
        "bias": True,
        "vocab_size": 300,
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 2048,
        "rms_norm_eps": 1e-5,
        "rotary": {"type": "dynamic", "base": 1000000},
    }
    (tmp_path / "config.json").write_text(json.dumps(raw))
    ids = torch.randint(0, 300, (1, 12))
    with torch.no_grad():
        torch.testing.assert_close(
            load_model(job(tmp_path), CPU)(input_ids=ids).logits, model(input_ids=ids).logits, atol=1e-6, rtol=0
        )
