"""XComposer2 against arithmetic written here from its facts: tower, projector, partial LoRA at image positions, places
of images; and what training and generation need of it."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional

from tests.trainer.seeing import write_xcomposer2
from trainer.config.job import TrainConfig
from trainer.errors import ConfigError
from trainer.families.xcomposer2_layout import to_original
from trainer.families.xcomposer2_model import resize_positions
from trainer.fused.apply import obstacle
from trainer.models.attention import use_varlen
from trainer.models.load import load_model
from trainer.models.lora import attach_lora

CPU = torch.device("cpu")
HEADS, KV_HEADS, PATCH = 4, 2, 14
VISION_HEADS = 4


def linear(weights, name, x):
    out = x @ weights[f"{name}.weight"].T
    return out + weights[f"{name}.bias"] if f"{name}.bias" in weights else out


def norm(x, weight, bias, eps=1e-5):
    centred = x - x.mean(-1, keepdim=True)
    return centred / torch.sqrt((centred**2).mean(-1, keepdim=True) + eps) * weight + bias


def reference_features(weights, image, side):
    """One image [3, S, S] -> [side * side, hidden]: CLIP's last hidden state without class token, and the projector."""
    tower = {name.split("vision_model.")[1]: tensor for name, tensor in weights.items() if "vision_model." in name}
    table = tower["embeddings.position_embedding.weight"]
    old = math.isqrt(len(table) - 1)
    if old != side:
        grid = table[1:].view(1, old, old, -1).permute(0, 3, 1, 2)
        grid = functional.interpolate(grid, (side, side), mode="bicubic", align_corners=False)
        table = torch.cat([table[:1], grid[0].permute(1, 2, 0).reshape(side * side, -1)])
    kernel = tower["embeddings.patch_embedding.weight"].flatten(1)
    patches = [
        kernel @ image[:, PATCH * row : PATCH * (row + 1), PATCH * column : PATCH * (column + 1)].flatten()
        for row in range(side)
        for column in range(side)
    ]
    x = torch.stack([tower["embeddings.class_embedding"], *patches]) + table
    x = norm(x, tower["pre_layrnorm.weight"], tower["pre_layrnorm.bias"])
    for layer in range(2):
        at = f"encoder.layers.{layer}."
        y = norm(x, tower[at + "layer_norm1.weight"], tower[at + "layer_norm1.bias"])
        q, k, v = (linear(tower, f"{at}self_attn.{name}_proj", y) for name in "qkv")
        outs = []
        for one in torch.arange(q.shape[1]).chunk(VISION_HEADS):
            outs.append((q[:, one] @ k[:, one].T / len(one) ** 0.5).softmax(-1) @ v[:, one])
        x = x + linear(tower, at + "self_attn.out_proj", torch.cat(outs, -1))
        y = linear(tower, at + "mlp.fc1", norm(x, tower[at + "layer_norm2.weight"], tower[at + "layer_norm2.bias"]))
        x = x + linear(tower, at + "mlp.fc2", y * torch.sigmoid(1.702 * y))
    y = linear(weights, "vision_proj.0", x[1:])
    return linear(weights, "vision_proj.2", y * 0.5 * (1 + torch.erf(y / 2**0.5)))


def reference_logits(weights, ids, features, starts, scale=1.0):
    """InternLM2 over [T] ids, in which the features [P, hidden] of an image stand at each of `starts`; its matrices
    have their low-rank terms there and nowhere else."""
    hidden = weights["model.tok_embeddings.weight"][ids]
    seen = torch.zeros(len(ids), 1)
    for start, image in zip(starts, features, strict=True):
        hidden[start : start + len(image)] = image
        seen[start : start + len(image)] = 1
    length, width = hidden.shape
    head = width // HEADS
    inverse = 1.0 / 1e6 ** (torch.arange(0, head, 2).float() / head)
    angles = torch.outer(torch.arange(length).float(), inverse).repeat(1, 2)

    def partial(name, x):
        low = x @ weights[f"{name}.Plora_A.weight"].T @ weights[f"{name}.Plora_B.weight"].T
        return x @ weights[f"{name}.weight"].T + seen * scale * low

    def rms(x, name):
        return weights[f"{name}.weight"] * x / torch.sqrt((x * x).mean(-1, keepdim=True) + 1e-5)

    def rotate(x):
        return x * angles.cos() + torch.cat([-x[:, head // 2 :], x[:, : head // 2]], -1) * angles.sin()

    for layer in range(2):
        at = f"model.layers.{layer}."
        fused = partial(at + "attention.wqkv", rms(hidden, at + "attention_norm"))
        fused = fused.view(length, KV_HEADS, HEADS // KV_HEADS + 2, head)
        outs = []
        for query in range(HEADS):
            group, place = divmod(query, HEADS // KV_HEADS)
            q, k, v = rotate(fused[:, group, place]), rotate(fused[:, group, -2]), fused[:, group, -1]
            scores = (q @ k.T / head**0.5).masked_fill(torch.triu(torch.ones(length, length), 1).bool(), float("-inf"))
            outs.append(scores.softmax(-1) @ v)
        hidden = hidden + partial(at + "attention.wo", torch.cat(outs, -1))
        x = rms(hidden, at + "ffn_norm")
        gate, up = partial(at + "feed_forward.w1", x), partial(at + "feed_forward.w3", x)
        hidden = hidden + partial(at + "feed_forward.w2", functional.silu(gate) * up)
    return rms(hidden, "model.norm") @ weights["output.weight"].T


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A random one whose every weight is large enough to be seen in the logits, float32."""
    folder = tmp_path_factory.mktemp("xcomposer2")
    write_xcomposer2(folder, 120)
    torch.manual_seed(4)
    found = load_file(folder / "model.safetensors")
    weights = {name: torch.randn_like(tensor.float()) * 0.2 for name, tensor in found.items()}
    save_file(weights, folder / "model.safetensors")
    return folder, weights


def job(path, **model):
    return TrainConfig.model_validate(
        {
            "model": {"path": str(path), "quantization": "none", "dtype": "fp32", **model},
            "data": {"sources": [{"path": "x"}]},
        }
    )


def batch(*starts, length=16, size=28, seed=0):
    """A row of ids with an image at each of `starts`."""
    torch.manual_seed(seed)
    tokens = (size // PATCH) ** 2
    mask = torch.zeros(1, length, dtype=torch.bool)
    for start in starts:
        mask[0, start : start + tokens] = True
    inputs = {"input_ids": torch.randint(3, 120, (1, length)), "image_mask": mask}
    return (
        {**inputs, "pixel_values": torch.randn(len(starts), 3, size, size)}
        if starts
        else {**inputs, "image_mask": None}
    )


@pytest.mark.parametrize("starts", [(), (3,), (0, 9), (2, 6)])
def test_logits_equal_the_arithmetic_of_the_facts(checkpoint, starts):
    folder, weights = checkpoint
    inputs = batch(*starts)
    with torch.no_grad():
        ours = load_model(job(folder), CPU).eval()(**inputs).logits[0]
    features = [reference_features(weights, image, 2) for image in inputs.get("pixel_values", [])]
    expected = reference_logits(weights, inputs["input_ids"][0], features, starts)
    torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_the_partial_lora_is_scaled_by_alpha_over_rank(checkpoint, tmp_path):
    folder, weights = checkpoint
    raw = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "plora_alpha": 2 * raw["plora_rank"]}))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    inputs = batch(3)
    with torch.no_grad():
        ours = load_model(job(tmp_path), CPU).eval()(**inputs).logits[0]
    features = [reference_features(weights, inputs["pixel_values"][0], 2)]
    torch.testing.assert_close(
        ours, reference_logits(weights, inputs["input_ids"][0], features, (3,), scale=2.0), atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("size", [42, 70])
def test_positions_are_resized_to_another_image_size(checkpoint, tmp_path, size):
    folder, weights = checkpoint
    raw = json.loads((folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps({**raw, "img_size": size}))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    image = batch(0, length=30, size=size)["pixel_values"]
    with torch.no_grad():
        ours = load_model(job(tmp_path), CPU).image_features(image)[0]
    torch.testing.assert_close(ours, reference_features(weights, image[0], size // PATCH), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("size", "side"), [(224, 16), (490, 35)])
def test_clips_grid_of_24_becomes_that_of_the_makers_sizes(size, side):
    table = torch.randn(24 * 24 + 1, 8)
    grid = functional.interpolate(table[1:].view(1, 24, 24, 8).permute(0, 3, 1, 2), (side, side), mode="bicubic")
    resized = resize_positions(table, side)
    assert resized.shape == ((size // 14) ** 2 + 1, 8) and torch.equal(resized[0], table[0])
    torch.testing.assert_close(resized[1:], grid[0].permute(1, 2, 0).reshape(side * side, 8))


def test_the_size_of_an_image_is_read_from_the_positions_where_the_config_is_silent(checkpoint, tmp_path):
    folder, _ = checkpoint
    raw = json.loads((folder / "config.json").read_text())
    del raw["img_size"]
    (tmp_path / "config.json").write_text(json.dumps(raw))
    (tmp_path / "model.safetensors").symlink_to(folder / "model.safetensors")
    assert load_model(job(tmp_path), CPU).config.vision_config["image_size"] == 28


@pytest.mark.parametrize("starts", [(3,), (1, 8)])
def test_generation_with_a_cache_equals_generation_without(checkpoint, starts):
    model = load_model(job(checkpoint[0]), CPU).eval()
    inputs = batch(*starts)
    told = {"max_new_tokens": 6, "do_sample": False, "eos_token_id": None, "pad_token_id": 2,
            "attention_mask": torch.ones_like(inputs["input_ids"])}  # fmt: skip
    cached, whole = (model.generate(**inputs, **told, use_cache=use) for use in (True, False))
    assert torch.equal(cached, whole)
    with torch.no_grad():
        whole = model(
            **{**inputs, "input_ids": cached[:, :-1], "image_mask": functional.pad(inputs["image_mask"], (0, 5))}
        )
    assert torch.equal(whole.logits[0, -6:].argmax(-1), cached[0, -6:])


def test_images_and_their_positions_must_agree(checkpoint):
    inputs = batch(3)
    inputs["image_mask"][0, 12] = True
    with pytest.raises(ValueError, match="got 5 image positions, expected 4"):
        load_model(job(checkpoint[0]), CPU)(**inputs)


def test_packed_samples_with_images_do_not_see_each_other(checkpoint):
    model = load_model(job(checkpoint[0]), CPU).eval()
    first, second = batch(3, length=10), batch(2, length=9, seed=5)
    ids = torch.cat([first["input_ids"], second["input_ids"]], 1)
    with torch.no_grad():
        packed = model(
            input_ids=ids,
            position_ids=torch.cat([torch.arange(10), torch.arange(9)])[None],
            image_mask=torch.cat([first["image_mask"], second["image_mask"]], 1),
            pixel_values=torch.cat([first["pixel_values"], second["pixel_values"]]),
            use_cache=False,
        ).logits
        alone = torch.cat([model(**first).logits, model(**second).logits], 1)
    torch.testing.assert_close(packed, alone, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_only_the_language_models_linears_are_quantised(checkpoint, quantization):
    model = load_model(job(checkpoint[0], quantization=quantization, dtype="bf16"), CPU)
    kinds = {name: type(module).__name__ for name, module in model.named_modules() if hasattr(module, "in_features")}
    small = {"nf4": "Linear4bit", "int8": "Linear8bitLt"}[quantization]
    assert {kind for name, kind in kinds.items() if name.startswith("model.layers.")} == {small}
    assert {kind for name, kind in kinds.items() if not name.startswith("model.layers.")} == {"Linear"}
    assert {p.dtype for name, p in model.named_parameters() if ".plora." in name or name.startswith("vi")} == {
        torch.bfloat16
    }
    with torch.no_grad():
        assert model(**batch(3)).logits.isfinite().all()


def test_an_adapter_is_attached_to_the_language_model_alone_and_comes_back(checkpoint, tmp_path):
    from peft import PeftModel

    folder, _ = checkpoint
    model = attach_lora(load_model(job(folder), CPU), job(folder, lora={"r": 4}).model.lora, str(folder))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained and all(name.startswith("base_model.model.model.layers.") and ".lora_" in name for name in trained)
    assert {name.split(".lora_")[0].rpartition(".")[2] for name in trained} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}  # fmt: skip
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
        model.save_pretrained(tmp_path / "adapter")
        wanted = model.eval()(**batch(3)).logits
        again = PeftModel.from_pretrained(load_model(job(folder), CPU), tmp_path / "adapter").eval()
        assert torch.equal(again(**batch(3)).logits, wanted)


def test_a_step_trains_the_adapter_and_nothing_else(checkpoint):
    folder, _ = checkpoint
    model = attach_lora(
        load_model(job(folder), CPU), job(folder, lora={"r": 4, "dropout": 0.0}).model.lora, str(folder)
    )
    model.gradient_checkpointing_enable({"use_reentrant": False})
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    inputs = batch(3)
    labels = inputs["input_ids"].masked_fill(inputs["image_mask"], -100)
    losses = []
    for _ in range(12):
        loss = model.train()(**inputs, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.9 * losses[0]
    changed = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert changed and all(".lora_" in name for name in changed)


def test_a_checkpointed_step_has_the_gradients_of_a_usual_one(checkpoint):
    folder, _ = checkpoint
    gradients = []
    for checkpointed in (False, True):
        torch.manual_seed(1)
        model = attach_lora(load_model(job(folder), CPU), job(folder, lora={"r": 4, "dropout": 0.0}).model.lora, "x")
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(parameter, std=0.1)
        if checkpointed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        inputs = batch(3)
        loss = model.train()(**inputs, labels=inputs["input_ids"]).loss
        model(**batch(), use_cache=False)  # another pass, without images, before the backward pass computes again
        loss.backward()
        gradients.append([p.grad for p in model.parameters() if p.requires_grad])
    assert all(torch.allclose(one, other, atol=1e-6) for one, other in zip(*gradients, strict=True))


def test_fused_layers_are_not_for_it(checkpoint):
    model = attach_lora(load_model(job(checkpoint[0]), CPU), job("x", lora={"r": 4}).model.lora, "x")
    assert obstacle(model) == "its layers are XComposer2DecoderLayer"


def test_the_tower_keeps_its_own_attention(checkpoint):
    model = load_model(job(checkpoint[0]), CPU)
    use_varlen(model)
    assert model.config._attn_implementation == "varlen"
    assert model.vit.encoder.layers[0].self_attn.config._attn_implementation == "sdpa"


def test_the_makers_layout_comes_back_to_the_bit(checkpoint):
    folder, weights = checkpoint
    model = load_model(job(folder), CPU)
    back = to_original(model.state_dict(), model.config)
    missing = {name for name in weights if name not in back}
    assert all("post_layernorm" in name for name in missing) and back.keys() <= weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in back.items())


def test_a_missing_partial_lora_is_named(checkpoint, tmp_path):
    folder, weights = checkpoint
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    save_file(
        {name: value for name, value in weights.items() if "wo.Plora_B" not in name}, tmp_path / "model.safetensors"
    )
    with pytest.raises(ConfigError, match=r"2 weights are missing, the first is model.layers.0.plora.wo.b.o.weight"):
        load_model(job(tmp_path), CPU)


V2 = {"architectures": ["InternLMXComposer2ForCausalLM"], "model_type": "internlm2", "img_size": 28, "max_length": 4096}
V1 = {"architectures": ["InternLMXComposerForCausalLM"], "model_type": "InternLMXComposer"}
OTHERS = [
    (V1, {}, "InternLM-XComposer v1 checkpoint"),
    (V2, {"perceive_sampler.query_tokens": torch.zeros(1)}, "InternLM-XComposer v1 checkpoint"),
    (V2, {"plora_glb_GN": torch.zeros(1, 1, 4)}, "XComposer2-4KHD or 2.5"),
    (V2, {"plora_sub_GN": torch.zeros(1, 1, 4)}, "XComposer2-4KHD or 2.5"),
    ({**V2, "hd_num": 24}, {}, "XComposer2-4KHD or 2.5"),
    ({**V2, "max_length": 16384}, {}, "XComposer2-4KHD or 2.5"),
]


@pytest.mark.parametrize(("raw", "weights", "named"), OTHERS)
def test_other_xcomposers_stop_with_a_clear_message(raw, weights, named, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"vocab_size": 120, **raw}))
    save_file({"model.norm.weight": torch.zeros(4), **weights}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match=named) as caught:
        load_model(job(tmp_path), CPU)
    assert "allowed: InternLM-XComposer2 and XComposer2-VL" in caught.value.message
    assert "internlm-xcomposer2-vl-7b" in caught.value.hint
