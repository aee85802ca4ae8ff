"""Llama 2 and 3."""

from trainer.families.card import Card, NewModels
from trainer.families.native import native_config, native_model, same_name
from trainer.families.shape import config_fields, llama_shape, on_hub, tiny

_LLAMA2 = {
    "7b": llama_shape(32000, 4096, 11008, 32, (32, 32)),
    "13b": llama_shape(32000, 5120, 13824, 40, (40, 40)),
    "70b": llama_shape(32000, 8192, 28672, 80, (64, 8)),
}
_LLAMA3 = {"8B": llama_shape(128256, 4096, 14336, 32, (32, 8)), "70B": llama_shape(128256, 8192, 28672, 80, (64, 8))}
_LLAMA32 = {
    "1B": llama_shape(128256, 2048, 8192, 16, (32, 8), tied=True),
    "3B": llama_shape(128256, 3072, 8192, 28, (24, 8), tied=True),
}

CARD = Card(
    "llama", native_config, native_model, same_name,
    biases={"qkv": "attention_bias", "out": "attention_bias", "mlp": "mlp_bias"},
    hub={
        **on_hub(("meta-llama/Llama-2-{}-hf", "meta-llama/Llama-2-{}-chat-hf"), _LLAMA2),
        **on_hub(("meta-llama/Meta-Llama-3-{}", "meta-llama/Meta-Llama-3-{}-Instruct", "meta-llama/Llama-3.1-{}",
                  "meta-llama/Llama-3.1-{}-Instruct"), _LLAMA3),
        **on_hub(("meta-llama/Llama-3.2-{}", "meta-llama/Llama-3.2-{}-Instruct"), _LLAMA32),
        **on_hub(("meta-llama/Llama-3.3-{}-Instruct",), {"70B": _LLAMA3["70B"]}),
    },
    template="llama3", guess="llama2",
    new=NewModels(
        "LlamaForCausalLM", {"rms_norm_eps": 1e-5, "rope_theta": 5e5, "max_position_embeddings": 8192},
        {"tiny": tiny(), "7b": config_fields(_LLAMA2["7b"], rope_theta=1e4, max_position_embeddings=4096),
         "8b": config_fields(_LLAMA3["8B"])},
    ),
)  # fmt: skip
