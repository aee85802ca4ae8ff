"""The size of a model as numbers, and how families state theirs. Imports no torch.

Only families with Llama's layers are known: grouped key heads, a gated feed-forward half, RMSNorm, one embedding and
one head; XComposer2 has parts that see images besides. Parameter counts are those of the models that the trainer makes
of the checkpoints, to the last one.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

TINY_VOCAB = 512
LARGEST_SIZE = 10**9  # of anything that a config.json counts


@dataclass(frozen=True)
class ModelShape:
    """Sizes of a decoder with Llama's layers. `qkv_bias`, `out_bias`, `mlp_bias`: which linear layers have one;
    `qk_norm`: a norm over each query and key head (Qwen3); `tied`: the head is the embedding; `norms`: of a layer, over
    its whole width; `fused`: query, key and value are one linear layer, gate and up another (Phi-3); `seeing`: frozen
    parameters for images, never quantised. (What a tower computes is not kept, and takes less than a decoder layer.)"""

    vocab: int
    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    qk_norm: bool = False
    tied: bool = False
    norms: int = 2
    fused: bool = False
    seeing: int = 0

    @property
    def query_width(self) -> int:
        """Elements of all query heads; also those of the attention's output."""
        return self.heads * self.head_dim

    @property
    def kv_width(self) -> int:
        """Elements of all key heads, or of all value heads."""
        return self.kv_heads * self.head_dim

    @property
    def qkv_width(self) -> int:
        """Elements of a token's query, key and value together."""
        return self.query_width + 2 * self.kv_width

    @property
    def linears(self) -> dict[str, tuple[int, int]]:
        """Name -> (inputs, outputs) of the linear layers of one decoder layer, by the trainer's names."""
        ends = {"o_proj": (self.query_width, self.hidden), "down_proj": (self.intermediate, self.hidden)}
        if self.fused:
            starts = {"qkv_proj": self.qkv_width, "gate_up_proj": 2 * self.intermediate}
        else:
            starts = {
                "q_proj": self.query_width,
                "k_proj": self.kv_width,
                "v_proj": self.kv_width,
                "gate_proj": self.intermediate,
                "up_proj": self.intermediate,
            }
        return {**{name: (self.hidden, outputs) for name, outputs in starts.items()}, **ends}

    @property
    def linear_parameters(self) -> int:
        """Weights of all linear layers but the head, without biases: what is quantised."""
        return self.layers * sum(inputs * outputs for inputs, outputs in self.linears.values())

    @property
    def parameters(self) -> int:
        """All parameters; a tied head counts once."""
        biases = self.qkv_bias * self.qkv_width + self.out_bias * self.hidden
        biases += self.mlp_bias * (2 * self.intermediate + self.hidden)
        norms = self.norms * self.hidden + self.qk_norm * 2 * self.head_dim
        tables = self.vocab * self.hidden * (1 if self.tied else 2)
        return self.linear_parameters + self.layers * (biases + norms) + tables + self.hidden + self.seeing

    @property
    def largest_weight(self) -> int:
        """Elements of the largest single weight."""
        return self.hidden * max(self.vocab, self.intermediate, self.query_width)


def llama_shape(vocab: int, hidden: int, intermediate: int, layers: int, heads: tuple[int, int],
                **more: Any) -> ModelShape:
    """`heads`: query and key/value heads."""
    head_dim = more.pop("head_dim", hidden // heads[0])
    return ModelShape(vocab, hidden, intermediate, layers, *heads, head_dim, **more)


def on_hub(forms: Iterable[str], sizes: Mapping[str, ModelShape]) -> dict[str, ModelShape]:
    """Shapes by their names on the Hugging Face hub: each form of a name, each size in its place."""
    return {form.format(size): shape for form in forms for size, shape in sizes.items()}


def config_fields(shape: ModelShape, **more: Any) -> dict[str, Any]:
    """The shape as fields of a config.json, and more of them."""
    return {
        "vocab_size": shape.vocab,
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.head_dim,
        "tie_word_embeddings": shape.tied,
        **more,
    }


def tiny(kv_heads: int = 2, *, tied: bool = False, **more: Any) -> dict[str, Any]:
    """Fields of a config.json for tests: two layers, four heads."""
    return config_fields(ModelShape(TINY_VOCAB, 64, 128, 2, 4, kv_heads, 16, tied=tied), **more)


def size_of(values: Mapping[str, Any], key: str) -> int:
    """A size in a config.json. Raises ValueError with what is missing or not known."""
    value = values.get(key)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= LARGEST_SIZE:
        raise ValueError(f"got {key} {value!r}, known: a whole number from 1 to {LARGEST_SIZE}")
    return value
