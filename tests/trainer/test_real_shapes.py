"""What the estimate counts is what the libraries hold: parameters of transformers' classes, bytes of 4-bit weights."""

import pytest
import torch

from trainer.config.job import Lora
from trainer.families.registry import CARDS
from trainer.models.load import empty_model
from trainer.sizing import estimate as module
from trainer.sizing.estimate import ModelShape, shape_of_config

SIZES = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 320, "head_dim": 16,
}  # fmt: skip
VISION = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
KINDS = [
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"tie_word_embeddings": True, "head_dim": 32}),
    ("mistral", {}),
    ("qwen2", {}),
    ("qwen3", {"head_dim": 32, "attention_bias": True}),
    ("internlm3", {"bias": True, "qkv_bias": True}),
    ("internlm2", {"bias": False}),
    ("internlm2", {"bias": True}),
    ("internlm", {"num_key_value_heads": None}),
    ("gemma", {}),
    ("gemma", {"head_dim": None, "num_key_value_heads": None}),
    ("gemma2", {"tie_word_embeddings": False}),
    ("gemma3_text", {"num_key_value_heads": None, "attention_bias": True}),
    ("phi3", {"head_dim": None, "pad_token_id": 0}),
    ("xcomposer2", {"img_size": 28, "plora_rank": 4, "vision_config": VISION}),
    ("xcomposer2", {"img_size": 490, "num_hidden_layers": 1}),
]


def real_model(kind, raw):
    """The class that the trainer makes for this config.json, without memory."""
    given = {"model_type": kind, **{key: value for key, value in raw.items() if value is not None}}
    family = CARDS[kind]
    return empty_model(family, family.config(given))


def linears(layer):
    return {
        name.rpartition(".")[2]: (module.in_features, module.out_features)
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear)
    }


def test_linear_layers_of_phi3_are_fused():
    found = linears(real_model("phi3", SIZES | {"pad_token_id": 0}).model.layers[0])
    assert found == shape_of_config({"model_type": "phi3", **SIZES}).linears


def test_what_sees_images_is_not_quantised():
    """The linear layers of an XComposer2 are its decoder's; all else is what `seeing` counts besides InternLM2's."""
    raw = {"model_type": "xcomposer2", **SIZES, "img_size": 28, "vision_config": VISION}
    shape, model = shape_of_config(raw), real_model("xcomposer2", raw)
    plain = shape_of_config({"model_type": "internlm2", **SIZES})
    assert (shape.linears, shape.linear_parameters) == (plain.linears, plain.linear_parameters)
    parts = ("vit.", "vision_proj.", ".plora.")
    seeing = sum(one.numel() for name, one in model.named_parameters() if any(part in name for part in parts))
    assert seeing == shape.seeing == shape.parameters - plain.parameters
    assert shape_of_config(model.config.to_dict()) == shape  # which the trainer asks for


@pytest.mark.parametrize(("kind", "more"), KINDS)
def test_parameters_are_those_of_the_real_class(kind, more):
    raw = {**SIZES, **more}
    shape = shape_of_config({"model_type": kind, **raw})
    assert shape.parameters == real_model(kind, raw).num_parameters()


def test_linear_layers_have_the_names_and_sizes_of_the_real_class():
    shape = shape_of_config({"model_type": "qwen3", **SIZES, "head_dim": 32})
    assert linears(real_model("qwen3", {**SIZES, "head_dim": 32}).model.layers[0]) == shape.linears


def test_adapters_are_those_of_peft():
    from peft import LoraConfig, get_peft_model

    model = real_model("llama", SIZES)
    lora = Lora(r=4, targets=["q_proj", "down_proj"])
    adapted = get_peft_model(model, LoraConfig(r=4, target_modules=lora.targets))
    shape = shape_of_config({"model_type": "llama", **SIZES})
    assert adapted.get_nb_trainable_parameters()[0] == module.adapter_parameters(lora, shape)


def test_four_bit_weights_have_the_bytes_that_bitsandbytes_gives_them():
    from bitsandbytes.nn import Params4bit

    shape = ModelShape(vocab=320, hidden=64, intermediate=1000, layers=1, heads=2, kv_heads=1, head_dim=32)
    packed = scales = tables = 0
    for inputs, outputs in shape.linears.values():
        dense = torch.randn(outputs, inputs)
        weight = Params4bit(dense, requires_grad=False, quant_type="nf4", compress_statistics=True).to("cpu")
        state = weight.quant_state
        packed += weight.nbytes
        scales += state.absmax.nbytes + state.state2.absmax.nbytes
        tables += state.code.nbytes + state.state2.code.nbytes + state.offset.nbytes
    assert packed == shape.linear_parameters // 2
    assert scales == module.nf4_scales(shape) - len(shape.linears) * module.NF4_TABLES
    assert tables <= len(shape.linears) * module.NF4_TABLES
