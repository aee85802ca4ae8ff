"""InternLM v1's attention over a cache. It holds keys before they are rotated, and rotates all of them by the base of
the text so far; Llama's holds them as they were rotated once. That differs past the trained length only, where the base
grows with every token (InternLM's model code)."""

from functools import cache
from typing import Any

import torch

from trainer.families.rope import apply_rotary, frequencies, rope_llama


def llama_model(config: Any) -> Any:
    """A LlamaForCausalLM whose cached keys follow the base past the trained length."""
    model = rope_llama(config)
    if config.rope_parameters["rope_type"] == "dynamic":
        model._can_compile_fullgraph = False  # it asks how much is cached
        for index, layer in enumerate(model.model.layers):
            layer.self_attn = _attention()(config, index)
    return model


@cache
def _attention() -> Any:
    """The attention's class; transformers loads when it is asked for."""
    from transformers.models.llama.modeling_llama import LlamaAttention

    class InternLMAttention(LlamaAttention):  # type: ignore[misc]
        """Llama's attention over a cache that `_Keys` looks after."""

        def forward(self, hidden_states: torch.Tensor, **kwargs: Any) -> Any:
            """As Llama's; hidden_states [B, T, hidden]."""
            name = "cache" if "cache" in kwargs else "past_key_values"  # as this transformers calls it
            held, trained = kwargs.get(name), self.config.max_position_embeddings
            if held is not None and held.get_seq_length(self.layer_idx) + hidden_states.shape[1] > trained:
                kwargs[name] = _Keys(held, self.config, kwargs["position_ids"])
            return super().forward(hidden_states, **kwargs)

    return InternLMAttention


class _Keys:
    """A cache for a text past the trained length: keys lie in it as they are turned within that length, and come out
    as the base of the text so far rotates them. position_ids [B or 1, T], the positions of the new tokens."""

    def __init__(self, cache: Any, config: Any, position_ids: torch.Tensor) -> None:
        self.cache, self.positions = cache, position_ids
        self.change = frequencies(config, position_ids) - frequencies(config, device=position_ids.device)

    def update(
        self, key: torch.Tensor, value: torch.Tensor, layer: int, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """key, value [B, H, T, D] -> those of all S tokens, [B, H, S, D]."""
        before = int(self.cache.get_seq_length(layer))
        keys, values = self.cache.update(apply_rotary(key, self.positions, -self.change), value, layer, *args, **kwargs)
        if not before:
            return key, values
        back = torch.arange(keys.shape[2] - 1, -1, -1, device=key.device)  # generation leaves no gaps
        return apply_rotary(keys, self.positions[:, -1:] - back, self.change), values
