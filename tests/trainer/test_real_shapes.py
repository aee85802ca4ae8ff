"""What the estimate counts is what the libraries hold: parameters of transformers' classes, bytes of 4-bit weights."""

import pytest
import torch

from trainer import estimate as module
from trainer.config import Lora
from trainer.estimate import ModelShape, shape_of_config
from trainer.models.load import empty_model
from trainer.models.registry import FAMILIES

SIZES = {
    "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 320, "head_dim": 16,
}  # fmt: skip
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
]


def real_model(kind, raw):
    """The class that the trainer makes for this config.json, without memory."""
    given = {"model_type": kind, **{key: value for key, value in raw.items() if value is not None}}
    family = FAMILIES[kind]
    return empty_model(family, family.config(given))


@pytest.mark.parametrize(("kind", "more"), KINDS)
def test_parameters_are_those_of_the_real_class(kind, more):
    raw = {**SIZES, **more}
    shape = shape_of_config({"model_type": kind, **raw})
    assert shape.parameters == real_model(kind, raw).num_parameters()


def test_linear_layers_have_the_names_and_sizes_of_the_real_class():
    shape = shape_of_config({"model_type": "qwen3", **SIZES, "head_dim": 32})
    layer = real_model("qwen3", {**SIZES, "head_dim": 32}).model.layers[0]
    found = {
        name.rpartition(".")[2]: (module.in_features, module.out_features)
        for name, module in layer.named_modules()
        if isinstance(module, torch.nn.Linear)
    }
    assert found == shape.linears


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
