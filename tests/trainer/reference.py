"""A decoder in plain float32 torch, written from the published facts of each family, and tiny checkpoints of them under
their own names. Nothing of transformers is used: what our models compute is compared with this.

Shapes: T new tokens, S tokens in all, H heads, D their width.
"""

import json
import math
from dataclasses import dataclass, field, replace

import torch
from safetensors.torch import save_file

VOCAB, WIDTH, INNER, LAYERS = 61, 32, 48, 2


@dataclass(frozen=True)
class Facts:
    """What of a family differs from Llama. `theta`, `window`: of each layer, or of all. `ntk`: factor and trained
    length of dynamic NTK; `turned_late`: the cache holds keys before they are turned (InternLM v1)."""

    kind: str
    heads: int = 4
    kv_heads: int = 2
    head: int = 8
    eps: float = 1e-5
    theta: tuple = (10000.0,)
    window: tuple = (None,)
    ntk: tuple | None = None
    turned_late: bool = False
    llama3: dict | None = None
    biases: tuple = ()
    qk_norm: bool = False
    gemma: bool = False  # norms count from one, the embedding is scaled, the activation is GELU
    sandwich: bool = False  # norms behind attention and feed-forward, too (Gemma 2 and 3)
    scale: float | None = None  # query_pre_attn_scalar
    caps: tuple = (None, None)  # of attention scores, of logits
    tied: bool = False
    more: dict = field(default_factory=dict)  # of config.json


DYNAMIC = {"rope_scaling": {"type": "dynamic", "factor": 2.0}, "rope_theta": 1e6, "max_position_embeddings": 24}
LLAMA3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}  # fmt: skip
GEMMA = {"gemma": True, "tied": True, "eps": 1e-6, "head": 16}
ALL = [
    Facts("internlm", kv_heads=4, eps=1e-6, ntk=(1.0, 24), turned_late=True, biases=("q", "k", "v", "o"),
          more={"bias": True, "rotary": {"type": "dynamic", "base": 10000}, "max_position_embeddings": 24}),
    Facts("internlm2", theta=(1e6,), ntk=(2.0, 24), more=DYNAMIC),
    Facts("internlm2.5", theta=(5e7,), ntk=(2.5, 24), heads=6, kv_heads=1, more={
        **DYNAMIC, "rope_theta": 5e7, "rope_scaling": {"type": "dynamic", "factor": 2.5}}),
    Facts("internlm3", theta=(5e7,), ntk=(6.0, 24), head=16, biases=("q", "k", "v", "o", "gate", "up", "down"), more={
        **DYNAMIC, "rope_theta": 5e7, "rope_scaling": {"rope_type": "dynamic", "factor": 6.0}, "qkv_bias": True,
        "bias": True, "head_dim": 16}),
    Facts("llama", kv_heads=4),
    Facts("llama3", theta=(5e5,), tied=True, llama3=LLAMA3, more={"rope_theta": 5e5, "rope_scaling": LLAMA3}),
    Facts("qwen2", theta=(1e6,), eps=1e-6, biases=("q", "k", "v"), more={"rope_theta": 1e6}),
    Facts("qwen3", theta=(1e6,), eps=1e-6, head=16, qk_norm=True, more={"rope_theta": 1e6, "head_dim": 16}),
    Facts("mistral", window=(6,), more={"sliding_window": 6, "head_dim": 8}),
    Facts("gemma", kv_heads=1, **GEMMA, more={"head_dim": 16, "hidden_act": "gelu_pytorch_tanh"}),
    Facts("gemma2", sandwich=True, scale=12.0, caps=(5.0, 3.0), window=(6, None), **GEMMA, more={
        "head_dim": 16, "query_pre_attn_scalar": 12, "attn_logit_softcapping": 5.0, "final_logit_softcapping": 3.0,
        "sliding_window": 6, "hidden_activation": "gelu_pytorch_tanh"}),
    Facts("gemma3_text", sandwich=True, scale=12.0, qk_norm=True, window=(6, None), theta=(1e4, 1e6), **GEMMA, more={
        "head_dim": 16, "query_pre_attn_scalar": 12, "sliding_window": 6, "sliding_window_pattern": 2,
        "rope_theta": 1e6, "rope_local_base_freq": 1e4, "hidden_activation": "gelu_pytorch_tanh"}),
    Facts("phi3", more={"pad_token_id": 0}),
]  # fmt: skip
BY_NAME = {facts.kind: facts for facts in ALL}
MODEL_TYPES = {"internlm2.5": "internlm2", "llama3": "llama"}
GROUPED = ("internlm2", "internlm2.5")


def write_checkpoint(folder, facts, seed=0):
    """A random checkpoint under the family's own names. Returns its weights."""
    torch.manual_seed(seed)
    weights = {}
    for name, shape in shapes(facts).items():
        around = 1.0 if "norm" in name and not facts.gemma else 0.0
        weights[name] = around + torch.randn(shape) * 0.2
    folder.mkdir(parents=True, exist_ok=True)
    save_file(weights, folder / "model.safetensors")
    raw = {"model_type": MODEL_TYPES.get(facts.kind, facts.kind), "vocab_size": VOCAB,
           "hidden_size": WIDTH * facts.heads // 4, "intermediate_size": INNER, "num_hidden_layers": LAYERS,
           "num_attention_heads": facts.heads,
           "num_key_value_heads": facts.kv_heads, "hidden_act": "silu", "max_position_embeddings": 512,
           "rms_norm_eps": facts.eps, "tie_word_embeddings": facts.tied, "bos_token_id": 1, "eos_token_id": 2,
           **facts.more}  # fmt: skip
    (folder / "config.json").write_text(json.dumps(raw))
    return weights


def shapes(facts):
    """Name -> shape of each weight in the family's own layout."""
    width, queries, keys = WIDTH * facts.heads // 4, facts.heads * facts.head, facts.kv_heads * facts.head
    grouped = facts.kind in GROUPED
    found = {"model.norm.weight": (width,),
             "model.tok_embeddings.weight" if grouped else "model.embed_tokens.weight": (VOCAB, width)}  # fmt: skip
    if not facts.tied:
        found["output.weight" if grouped else "lm_head.weight"] = (VOCAB, width)
    linears = {"q": (queries, width), "k": (keys, width), "v": (keys, width), "o": (width, queries),
               "gate": (INNER, width), "up": (INNER, width), "down": (width, INNER)}  # fmt: skip
    if grouped:
        linears = {"qkv": (queries + 2 * keys, width), **{key: linears[key] for key in ("o", "gate", "up", "down")}}
    if facts.kind == "phi3":
        linears = {"qkv": (queries + 2 * keys, width), "o": linears["o"], "gate_up": (2 * INNER, width),
                   "down": linears["down"]}  # fmt: skip
    for layer in range(LAYERS):
        for linear, shape in linears.items():
            found[name(facts, layer, linear)] = shape
            if linear in facts.biases:
                found[name(facts, layer, linear, "bias")] = shape[:1]
        norms = ["first", "second", *(["third", "fourth"] if facts.sandwich else [])]
        found |= {name(facts, layer, norm): (width,) for norm in norms}
        if facts.qk_norm:
            found |= {name(facts, layer, norm): (facts.head,) for norm in ("q_norm", "k_norm")}
    return found


def name(facts, layer, part, kind="weight"):
    if facts.kind in GROUPED:
        parts = {"qkv": "attention.wqkv", "o": "attention.wo", "gate": "feed_forward.w1", "up": "feed_forward.w3",
                 "down": "feed_forward.w2", "first": "attention_norm", "second": "ffn_norm"}  # fmt: skip
        return f"model.layers.{layer}.{parts[part]}.{kind}"
    norms = ["input_layernorm", "post_attention_layernorm"]
    if facts.sandwich:
        norms += ["pre_feedforward_layernorm", "post_feedforward_layernorm"]
    places = dict(zip(("first", "second", "third", "fourth"), norms, strict=False))
    if part in places:
        return f"model.layers.{layer}.{places[part]}.{kind}"
    if part.endswith("_norm"):
        return f"model.layers.{layer}.self_attn.{part}.{kind}"
    block = "mlp" if part in ("gate", "up", "gate_up", "down") else "self_attn"
    return f"model.layers.{layer}.{block}.{part}_proj.{kind}"


class Reference:
    """One model. `cache`: layer -> keys [S, kv heads, D] and values, as they lie in it. `longer`: by how many tokens
    the longest text of the batch is longer than this one; dynamic NTK counts that."""

    def __init__(self, facts, weights, longer=0):
        self.facts, self.weights, self.longer = facts, weights, longer

    def __call__(self, ids):
        """ids [T] -> logits [T, vocab], without a cache."""
        return self.logits(ids, {})

    def answer(self, ids, new):
        """The logits of the last token of `ids` and of `new` tokens given one by one: [1 + len(new), vocab]."""
        cache = {}
        return torch.stack([self.logits(ids, cache)[-1], *(self.logits(one[None], cache)[-1] for one in new)])

    def logits(self, ids, cache):
        facts, before = self.facts, len(cache[0][0]) if cache else 0
        grouped = facts.kind in GROUPED
        table = self.weights["model.tok_embeddings.weight" if grouped else "model.embed_tokens.weight"]
        x = table[ids] * (math.sqrt(table.shape[1]) if facts.gemma else 1.0)
        for layer in range(LAYERS):
            out = self.attention(layer, self.norm(x, name(facts, layer, "first")), before, cache)
            x = x + (self.norm(out, name(facts, layer, "second")) if facts.sandwich else out)
            out = self.feed_forward(layer, self.norm(x, name(facts, layer, "third" if facts.sandwich else "second")))
            x = x + (self.norm(out, name(facts, layer, "fourth")) if facts.sandwich else out)
        head = table if facts.tied else self.weights["output.weight" if grouped else "lm_head.weight"]
        return capped(self.norm(x, "model.norm.weight") @ head.T, facts.caps[1])

    def attention(self, layer, x, before, cache):
        facts = self.facts
        q, k, v = self.heads(layer, x)
        angles = self.angles(layer, before + len(x) + self.longer)
        positions = torch.arange(before, before + len(x))
        q = turned(q, positions, angles)
        k = k if facts.turned_late else turned(k, positions, angles)
        if before:
            k, v = torch.cat([cache[layer][0], k]), torch.cat([cache[layer][1], v])
        cache[layer] = (k, v)
        k = turned(k, torch.arange(len(k)), angles) if facts.turned_late else k
        window = facts.window[layer % len(facts.window)]
        outs = []
        for head in range(facts.heads):
            group = head * facts.kv_heads // facts.heads
            scores = capped(q[:, head] @ k[:, group].T / math.sqrt(facts.scale or facts.head), facts.caps[0])
            distance = positions[:, None] - torch.arange(len(k))
            hidden = (distance < 0) | (distance >= (window or len(k)))
            outs.append(scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v[:, group])
        return self.linear(layer, "o", torch.cat(outs, -1))

    def heads(self, layer, x):
        """Queries [T, H, D], keys and values [T, kv heads, D], before they are turned."""
        facts, size = self.facts, self.facts.head
        queries, keys = facts.heads * size, facts.kv_heads * size
        if facts.kind in GROUPED:  # of each key head: its queries, the key, the value
            fused = self.linear(layer, "qkv", x).view(len(x), facts.kv_heads, -1, size)
            q, k, v = fused[:, :, :-2].flatten(1, 2), fused[:, :, -2], fused[:, :, -1]
        elif facts.kind == "phi3":  # all queries, all keys, all values
            q, k, v = self.linear(layer, "qkv", x).split([queries, keys, keys], -1)
        else:
            q, k, v = (self.linear(layer, part, x) for part in "qkv")
        q, k, v = (part.reshape(len(x), -1, size) for part in (q, k, v))
        if facts.qk_norm:
            q, k = self.norm(q, name(facts, layer, "q_norm")), self.norm(k, name(facts, layer, "k_norm"))
        return q, k, v

    def feed_forward(self, layer, x):
        if self.facts.kind == "phi3":
            gate, up = self.linear(layer, "gate_up", x).chunk(2, -1)
        else:
            gate, up = self.linear(layer, "gate", x), self.linear(layer, "up", x)
        if self.facts.gemma:  # GELU by its tanh formula
            gate = 0.5 * gate * (1 + torch.tanh(math.sqrt(2 / math.pi) * (gate + 0.044715 * gate**3)))
        else:
            gate = gate / (1 + torch.exp(-gate))
        return self.linear(layer, "down", gate * up)

    def linear(self, layer, part, x):
        bias = self.weights.get(name(self.facts, layer, part, "bias"), 0.0)
        return x @ self.weights[name(self.facts, layer, part)].T + bias

    def norm(self, x, key):
        weight = self.weights[key] + (1.0 if self.facts.gemma else 0.0)
        return weight * x / torch.sqrt((x * x).mean(-1, keepdim=True) + self.facts.eps)

    def angles(self, layer, length):
        """Angles per position [D / 2] for a text of this length."""
        facts, size = self.facts, self.facts.head
        base = facts.theta[layer % len(facts.theta)]
        if facts.ntk and length > facts.ntk[1]:
            factor, trained = facts.ntk
            base *= (factor * length / trained - (factor - 1)) ** (size / (size - 2))
        angles = [base ** (-2 * place / size) for place in range(size // 2)]
        return torch.tensor([stretched(angle, facts.llama3) if facts.llama3 else angle for angle in angles])


def stretched(angle, rope):
    """Llama 3.1: slow angles are divided by the factor, fast ones stay, between them a mixture."""
    turns = rope["original_max_position_embeddings"] * angle / (2 * math.pi)
    low, high = rope["low_freq_factor"], rope["high_freq_factor"]
    share = min(max((turns - low) / (high - low), 0.0), 1.0)
    return angle * (share + (1 - share) / rope["factor"])


def turned(heads, positions, angles):
    """Each pair of elements half a width apart, turned by position times angle. heads [T, H, D]."""
    turn = torch.outer(positions.float(), angles)[:, None]
    first, second = heads.chunk(2, -1)
    return torch.cat([first * turn.cos() - second * turn.sin(), second * turn.cos() + first * turn.sin()], -1)


def capped(values, cap):
    return values if cap is None else cap * torch.tanh(values / cap)


def without_ntk(facts):
    """The same model without dynamic NTK, to show that it matters."""
    return replace(facts, ntk=None)
