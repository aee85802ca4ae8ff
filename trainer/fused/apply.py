"""Makes a model of transformers train through the fused layers, when it has their shape: adapters over frozen layers
of Llama's form. Everything else about it (generation, saving, its modules' names) stays as it was."""

from collections.abc import Callable, Iterator
from typing import Any

import torch
from transformers.integrations import is_deepspeed_zero3_enabled

from trainer.fused.attention import CuSeqlens
from trainer.fused.checkpointing import ActivationPolicy
from trainer.fused.flat import Adapters, FlatAdapters
from trainer.fused.head import mean_loss, take_targets
from trainer.fused.layer import HeadNorm, Layer, Norm, Step, run_layer
from trainer.fused.linear import Adapter, Linear, Product, Scratch
from trainer.kernels import ops_for

SEPARATE = {
    "qkv": ("self_attn", ("q_proj", "k_proj", "v_proj")),
    "o": ("self_attn", ("o_proj",)),
    "gate_up": ("mlp", ("gate_proj", "up_proj")),
    "down": ("mlp", ("down_proj",)),
}
JOINED = {**SEPARATE, "qkv": ("self_attn", ("qkv_proj",)), "gate_up": ("mlp", ("gate_up_proj",))}
# classes of transformers whose decoder layers compute what Layer does, with the linear layers of each product
LAYERS = {
    "LlamaDecoderLayer": SEPARATE,
    "MistralDecoderLayer": SEPARATE,
    "Qwen2DecoderLayer": SEPARATE,
    "Qwen3DecoderLayer": SEPARATE,
    "Phi3DecoderLayer": JOINED,
}


def obstacle(model: Any) -> str | None:
    """Why a model cannot take the fused layers, or None. `model`: a PeftModel, or a plain one."""
    if not hasattr(model, "get_base_model"):
        return "every parameter is trained"
    causal = model.get_base_model()
    layers = getattr(getattr(causal, "model", None), "layers", [])
    kinds = {type(layer).__name__ for layer in layers}
    if not kinds or kinds - LAYERS.keys():
        return f"its layers are {', '.join(sorted(kinds)) or 'not to be found'}"
    if problem := _config_obstacle(causal.config):
        return problem
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad and "lora_" not in name]
    if trained:
        return f"{trained[0]} is trained"
    found = (_product_obstacle(layer, *names) for layer in layers for names in _products(layer).values())
    return next((problem for problem in found if problem), None)


def use_fused_layers(model: Any, policy: ActivationPolicy, *, float8: bool = False) -> None:
    """Make `model`, for which there is no obstacle, compute its loss through fused layers whenever a batch brings its
    cumulative sequence lengths (trainer.data.collate). `float8`: products with frozen weights in FP8."""
    causal, is_partitioned = model.get_base_model(), is_deepspeed_zero3_enabled()
    scratch = Scratch()
    for layer in causal.model.layers:
        layer.forward = _with_fused(layer.forward, _layer_of(layer, causal.config, scratch))
    take_targets(causal.lm_head, None if is_partitioned else causal.model.norm)
    if is_partitioned:
        _gather_at_once(causal)
    elif policy.host is not None and not causal.config.tie_word_embeddings:
        _wait_in_host_memory(causal.model.embed_tokens)
    causal.forward = _FusedForward(causal, policy, float8=float8, norm=causal.model.norm if is_partitioned else None)


class _FusedForward:
    """In place of a causal model's forward. `norm`: the last one, where the head does not do it."""

    def __init__(self, causal: Any, policy: ActivationPolicy, *, float8: bool, norm: Any) -> None:
        self.causal, self.usual, self.policy, self.float8, self.norm = causal, causal.forward, policy, float8, norm

    def __call__(
        self,
        input_ids: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        cu_seq_lens_q: torch.Tensor | None = None,
        max_length_q: int = 0,
        **kwargs: Any,
    ) -> Any:
        """input_ids, labels, position_ids [B, T]; loss_at: the places in B*T whose next token is trained. Without
        cumulative sequence lengths, as in generation, the usual forward."""
        if input_ids is None or labels is None or cu_seq_lens_q is None:
            return self.usual(input_ids=input_ids, labels=labels, **kwargs)
        cu_seqlens = CuSeqlens(cu_seq_lens_q, max_length_q, len(input_ids))
        hidden = self._layers(input_ids, kwargs["position_ids"], cu_seqlens)
        return mean_loss(self.causal, hidden, labels, kwargs["loss_at"], kwargs.get("num_items_in_batch"))

    def _layers(self, input_ids: torch.Tensor, position_ids: torch.Tensor, cu_seqlens: CuSeqlens) -> torch.Tensor:
        base = self.causal.model
        x: torch.Tensor = base.embed_tokens(input_ids)
        cos, sin = base.rotary_emb(x, position_ids=position_ids)
        cos, sin = (part.expand(*input_ids.shape, -1).flatten(0, 1).contiguous() for part in (cos, sin))
        step = Step(cos, sin, cu_seqlens, self.policy, self.causal.training, self.float8)
        if self.policy.host is not None:
            self.policy.host.begin_step()
        if self.norm is not None:  # ZeRO-3 reduces a layer's gradients when its input has one
            x = x.detach().requires_grad_(torch.is_grad_enabled())
        x = x.flatten(0, 1)
        for layer in base.layers:
            x = layer(x, fused=step)
        return x if self.norm is None else self.norm(x)


def _wait_in_host_memory(embedding: Any) -> None:
    """Leave a frozen embedding's rows in host memory until they are asked for: a step needs few of them."""
    device, table = embedding.weight.device, embedding.weight.detach().cpu().pin_memory()
    embedding.weight = torch.nn.Parameter(table.new_empty(0, table.shape[1], device=device), requires_grad=False)

    def forward(ids: torch.Tensor) -> torch.Tensor:
        rows: torch.Tensor = ops_for(ids).take_rows(table, ids.flatten(), device)
        shaped: torch.Tensor = rows.unflatten(0, ids.shape)
        return shaped

    embedding.forward = forward


def _gather_at_once(causal: Any) -> None:
    """Have ZeRO-3 put all weights of a layer together when the layer begins, forward and backward: no module within it
    is called."""
    from deepspeed.utils import set_z3_leaf_modules

    set_z3_leaf_modules(causal, sorted({type(layer) for layer in causal.model.layers}, key=str))


def _with_fused(usual: Callable[..., Any], parts: Layer) -> Callable[..., Any]:
    def forward(hidden_states: torch.Tensor, *args: Any, fused: Step | None = None, **kwargs: Any) -> Any:
        return usual(hidden_states, *args, **kwargs) if fused is None else run_layer(hidden_states, parts, fused)

    return forward


def _layer_of(layer: Any, config: Any, scratch: Scratch) -> Layer:
    products = {
        kind: Product(kind, [_linear(getattr(getattr(layer, half), name)) for name in names])
        for kind, (half, names) in _products(layer).items()
    }
    adapters = Adapters([product.adapters for product in products.values()])
    if not is_deepspeed_zero3_enabled():
        adapters = layer.flat_adapters = FlatAdapters(layer, adapters.products)
    return Layer(
        **products,
        attention_norm=Norm(layer.input_layernorm),
        mlp_norm=Norm(layer.post_attention_layernorm),
        head_norm=_head_norm(layer.self_attn, config),
        heads=config.num_attention_heads,
        kv_heads=config.num_key_value_heads,
        scale=layer.self_attn.scaling,
        adapters=adapters,
        scratch=scratch,
    )


def _products(layer: Any) -> dict[str, tuple[str, tuple[str, ...]]]:
    return LAYERS[type(layer).__name__]


def _head_norm(attention: Any, config: Any) -> HeadNorm | None:
    if not hasattr(attention, "q_norm"):
        return None
    heads = (config.num_attention_heads, config.num_key_value_heads)
    return HeadNorm(Norm(attention.q_norm), Norm(attention.k_norm), heads)


def _linear(module: Any) -> Linear:
    base = getattr(module, "base_layer", module)
    return Linear(base, base.out_features, base.in_features, _adapter(module))


def _adapter(module: Any) -> Adapter | None:
    if not hasattr(module, "lora_A"):
        return None
    (name,) = module.active_adapters
    dropout = getattr(module.lora_dropout[name], "p", 0.0)
    return Adapter(module.lora_A[name].weight, module.lora_B[name].weight, module.scaling[name], dropout)


def _product_obstacle(layer: Any, half: str, names: tuple[str, ...]) -> str | None:
    modules = [getattr(getattr(layer, half), name) for name in names]
    kinds = {type(getattr(module, "base_layer", module)).__name__ for module in modules}
    if kinds - {"Linear", "Linear4bit"}:
        return f"a {', '.join(sorted(kinds))}"
    if any(any(getattr(module, "lora_variant", {}).values()) for module in modules):
        return "a variant of LoRA"
    adapters = {(found.scale, found.dropout) for found in map(_adapter, modules) if found is not None}
    return "adapters of several scales" if len(adapters) > 1 else None


def _config_obstacle(config: Any) -> str | None:
    if getattr(config, "hidden_act", "silu") != "silu":
        return "another activation than SiLU"
    if getattr(config, "attention_dropout", 0) or getattr(config, "resid_pdrop", 0):
        return "dropout outside of adapters"
    if (getattr(config, "rope_parameters", None) or {}).get("partial_rotary_factor", 1) != 1:
        return "heads that are rotated in part"
    return "sliding-window attention" if any(_windows(config)) else None


def _windows(config: Any) -> Iterator[int]:
    if getattr(config, "use_sliding_window", True):
        yield getattr(config, "sliding_window", None) or 0
