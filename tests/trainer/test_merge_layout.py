"""Layouts of a merged checkpoint to the bit, adapters between both forms, and bases that are not whole."""

import json
import math
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.trainer.merging import save_base, save_run
from trainer.checkpoints.results import describe, find_result
from trainer.errors import ConfigError
from trainer.export.adapters import convert_adapter
from trainer.export.layout import check_llama, choose, model_config, written, written_config
from trainer.export.merge import make_plan
from trainer.export.shards import write_checkpoint
from trainer.export.stored import checkpoint_weights
from trainer.export.weights import Weight
from trainer.families.card import Card
from trainer.families.registry import CARDS

DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0}


@pytest.fixture(scope="module")
def bases(tmp_path_factory, small_tokenizer_folder):
    """A checkpoint in each layout, with dynamic NTK."""
    folder = tmp_path_factory.mktemp("layouts")
    kinds = ("internlm2", "llama")
    return {kind: save_base(folder / kind, kind, small_tokenizer_folder, rope=DYNAMIC) for kind in kinds}


def convert(source, target, layout):
    """A checkpoint in another layout, without any adapter."""
    target.mkdir()
    raw = json.loads((source / "config.json").read_text())
    family = CARDS.get(raw["model_type"])
    config = model_config(raw, family)
    chosen = choose(layout, raw, config)
    weights = written(chosen, checkpoint_weights(source), family, config, lambda name, weight: weight)
    write_checkpoint(weights, target, shard_bytes=60_000)
    (target / "config.json").write_text(json.dumps(written_config(chosen, raw, config)))
    return target


def stored(folder):
    return {name: tensor for file in sorted(folder.glob("*.safetensors")) for name, tensor in load_file(file).items()}


@pytest.mark.parametrize("start", ["internlm2", "llama"])
def test_there_and_back_is_the_same_to_the_bit(start, bases, tmp_path):
    other = {"internlm2": "llama", "llama": "internlm2"}[start]
    there = convert(bases[start], tmp_path / "there", other)
    back = convert(there, tmp_path / "back", start)
    before, middle, after = stored(bases[start]), stored(there), stored(back)
    assert len(list(there.glob("*.safetensors"))) > 3
    assert any("wqkv" in name for name in before) != any("wqkv" in name for name in middle)
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    configs = [json.loads((folder / "config.json").read_text()) for folder in (bases[start], back)]
    ropes = [model_config(config, CARDS.get(config["model_type"])).rope_parameters for config in configs]
    assert {key: ropes[0][key] for key in DYNAMIC} == {key: ropes[1][key] for key in DYNAMIC}


def test_a_fused_weight_is_grouped_by_key_value_head(bases, tmp_path):
    """Pain 19: rows of wqkv, per key/value head: its queries, its key, its value."""
    there = stored(convert(bases["llama"], tmp_path / "there", "internlm2"))
    before = stored(bases["llama"])
    q, k, v = (before[f"model.layers.1.self_attn.{letter}_proj.weight"] for letter in "qkv")
    groups = [torch.cat([q[32 * one :][:32], k[16 * one :][:16], v[16 * one :][:16]]) for one in (0, 1)]
    assert torch.equal(there["model.layers.1.attention.wqkv.weight"], torch.cat(groups))


def test_remote_code_is_not_shipped(bases, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(bases["internlm2"], base)
    config = json.loads((base / "config.json").read_text())
    (base / "config.json").write_text(json.dumps(config | {"auto_map": {"AutoModel": "modeling.InternLM2"}}))
    written_there = json.loads((convert(base, tmp_path / "own", "internlm2") / "config.json").read_text())
    assert written_there == {**config, "torch_dtype": "bfloat16"}


def test_dynamic_ntk_is_written_for_old_and_new_readers(bases, tmp_path):
    from transformers import AutoConfig

    folder = convert(bases["internlm2"], tmp_path / "there", "llama")
    raw = json.loads((folder / "config.json").read_text())
    assert raw["rope_theta"] == 1e6
    assert raw["rope_scaling"] == {"type": "dynamic", "rope_type": "dynamic", "factor": 2.0}
    rope = AutoConfig.from_pretrained(folder).rope_parameters
    assert {key: rope[key] for key in DYNAMIC} == DYNAMIC


def test_what_servers_read_of_a_model_config_is_there(bases, tmp_path):
    """The fields that vLLM's and LMDeploy's Llama classes take from config.json."""
    raw = json.loads((convert(bases["internlm2"], tmp_path / "there", "llama") / "config.json").read_text())
    wanted = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
              "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
              "vocab_size": 600, "rms_norm_eps": 1e-6, "max_position_embeddings": 256, "hidden_act": "silu",
              "tie_word_embeddings": False, "attention_bias": False, "torch_dtype": "bfloat16"}  # fmt: skip
    assert {key: raw[key] for key in wanted} == wanted


@pytest.mark.parametrize(
    ("family", "layout", "words"),
    [
        ("qwen2", "llama", "got llama, allowed for a model of type qwen2: auto"),
        ("mistral", "internlm2", "got internlm2, allowed for a model of type mistral: auto"),
    ],
)
def test_a_layout_that_cannot_be_is_refused(family, layout, words, tmp_path, small_tokenizer_folder):
    base = save_base(tmp_path / "base", family, small_tokenizer_folder)
    with pytest.raises(ConfigError, match=words):
        convert(base, tmp_path / "there", layout)


def test_shards_with_an_index_load_in_transformers(bases, tmp_path):
    from transformers import AutoModelForCausalLM

    folder = convert(bases["internlm2"], tmp_path / "there", "llama")
    assert (folder / "model.safetensors.index.json").exists()
    model = AutoModelForCausalLM.from_pretrained(folder)
    found = stored(folder)
    assert all(torch.equal(tensor, found[name]) for name, tensor in model.state_dict().items())


def test_a_pickled_base_is_read_without_pickle(bases, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    shutil.copy(bases["internlm2"] / "config.json", base)
    weights = stored(bases["internlm2"])
    names = list(weights)
    for number, part in enumerate((names[:7], names[7:]), 1):
        torch.save({name: weights[name] for name in part}, base / f"pytorch_model-0000{number}-of-00002.bin")
    found = stored(convert(base, tmp_path / "there", "llama"))
    expected = stored(convert(bases["internlm2"], tmp_path / "expected", "llama"))
    assert found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in found)


class Evil:
    def __reduce__(self):
        return (print, ("run",))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        ("cut", r"model.safetensors: weight \S+: the file ends within it \(\d+ bytes, \d+ expected\)"),
        ("header", "model.safetensors: not a safetensors file"),
        ("missing file", "model-00002-of-00002.safetensors: is missing, but model.safetensors.index.json says that it"),
        ("missing weight", "the base lacks 1 weights, the first is model.layers.1.self_attn.o_proj.weight"),
        ("shape", r"model.safetensors: weight lm_head.weight: got shape \[599, 64\], allowed: \[600, 64\]"),
        ("fused shape", r"model.safetensors: weight model.layers.0.attention.wqkv.weight: got shape \[129, 64\]"),
        ("unknown weight", "got weight model.layers.7.mlp.up_proj.weight, allowed: the weights of LlamaForCausalLM"),
        ("dtype", "got dtype F8_E4M3, allowed: F64"),
        ("pickle", "pytorch_model.bin: holds more than tensors, or is no checkpoint; none of its code was run"),
        ("quantised", "its weights are quantised, allowed: a checkpoint in bf16"),
    ],
)  # fmt: skip
def test_a_base_that_is_not_whole_names_file_and_weight(harm, words, bases, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(bases["internlm2"], base)
    path, weights = base / "model.safetensors", stored(bases["internlm2"])
    if harm == "cut":
        path.write_bytes(path.read_bytes()[:-1000])
    elif harm == "header":
        path.write_bytes(b"\0" * 300)
    elif harm == "missing file":
        index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
        (base / "model.safetensors.index.json").write_text(json.dumps(index))
    elif harm == "pickle":
        path.unlink()
        torch.save({"a": Evil()}, base / "pytorch_model.bin")
    elif harm == "quantised":
        raw = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(raw | {"quantization_config": {"bits": 4}}))
    else:
        save_file(changed(weights, harm), path)
    with pytest.raises(ConfigError, match=words):
        make_plan(describe(find_result(save_run_on(base, bases["internlm2"], tmp_path))), "auto")


def changed(weights, harm):
    new = dict(weights)
    if harm == "missing weight":
        del new["model.layers.1.attention.wo.weight"]
    elif harm == "shape":
        new["output.weight"] = new["output.weight"][:599].contiguous()
    elif harm == "fused shape":
        new["model.layers.0.attention.wqkv.weight"] = torch.zeros(129, 64)
    elif harm == "dtype":
        new["model.norm.weight"] = new["model.norm.weight"].to(torch.float8_e4m3fn)
    else:
        new["model.layers.7.feed_forward.w3.weight"] = torch.zeros(96, 64)
    return new


def save_run_on(base, whole, folder):
    """A run that was trained on `whole`, whose config names `base`."""
    output = save_run(folder / "out", whole)
    config = (output / "config.yaml").read_text()
    (output / "config.yaml").write_text(config.replace(str(whole), str(base)))
    return output


def test_extra_buffers_of_old_checkpoints_are_left_out(bases, tmp_path):
    base = tmp_path / "base"
    shutil.copytree(bases["llama"], base)
    weights = stored(base) | {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    save_file(weights, base / "model.safetensors")
    assert not [name for name in stored(convert(base, tmp_path / "there", "internlm2")) if "inv_freq" in name]


def deltas(folder, fused):
    """scale * B A of every module of an adapter, float32, with q, k and v apart."""
    config = json.loads((folder / "adapter_config.json").read_text())
    low, found = load_file(folder / "adapter_model.safetensors"), {}
    for name in [name for name in low if name.endswith("lora_A.weight")]:
        module = name.removesuffix(".lora_A.weight")
        last, rank = module.rpartition(".")[2], low[name].shape[0]
        assert last in config["target_modules"] and config["rank_pattern"].get(last, config["r"]) == rank
        alpha = config["alpha_pattern"].get(last, config["lora_alpha"])
        scale = alpha / (math.sqrt(rank) if config["use_rslora"] else rank)
        found[module] = scale * (low[module + ".lora_B.weight"] @ low[name])
        if fused and last == "wqkv":
            grouped = found.pop(module).view(2, 4, 16, 64)
            at = module.removesuffix("attention.wqkv")
            for letter, part in zip("qkv", (grouped[:, :2], grouped[:, 2], grouped[:, 3]), strict=True):
                found[f"{at}self_attn.{letter}_proj"] = part.reshape(-1, 64)
    return found


NEW_NAMES = {"self_attn.o_proj": "attention.wo", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
             "mlp.down_proj": "feed_forward.w2"}  # fmt: skip


def renamed(name):
    return next((name.replace(old, new) for old, new in NEW_NAMES.items() if name.endswith(old)), name)


@pytest.mark.parametrize("lora", [{}, {"rslora": True}, {"targets": ["q_proj", "v_proj"]}, {"dora": True}])
def test_a_fused_adapter_changes_weights_as_the_split_one_does(lora, bases, tmp_path):
    """Pain 19: servers of InternLM2's layout know one adapter on wqkv, not three."""
    output = save_run(tmp_path / "out", bases["internlm2"], lora=lora)
    convert_adapter(output / "adapter", (4, 2), "internlm2", tmp_path / "fused")
    before, after = deltas(output / "adapter", fused=False), deltas(tmp_path / "fused", fused=True)
    for name, delta in before.items():
        torch.testing.assert_close(after.pop(renamed(name)), delta, rtol=1e-6, atol=1e-7)
    assert not [name for name, delta in after.items() if delta.any()]  # a k that was not adapted stays as it is


def test_a_fused_adapter_comes_back_from_the_split_form_to_the_bit(bases, tmp_path):
    output = save_run(tmp_path / "out", bases["internlm2"])
    convert_adapter(output / "adapter", (4, 2), "internlm2", tmp_path / "fused")
    config = json.loads((tmp_path / "fused/adapter_config.json").read_text())
    config |= {"r": 24, "lora_alpha": 48, "rank_pattern": {}, "alpha_pattern": {}, "target_modules": ["wqkv"]}
    (tmp_path / "fused/adapter_config.json").write_text(json.dumps(config))
    low = load_file(tmp_path / "fused/adapter_model.safetensors")
    low = {name: tensor for name, tensor in low.items() if "wqkv" in name}
    save_file(low, tmp_path / "fused/adapter_model.safetensors")
    convert_adapter(tmp_path / "fused", (4, 2), "llama", tmp_path / "split")
    split = json.loads((tmp_path / "split/adapter_config.json").read_text())
    assert split["target_modules"] == ["k_proj", "q_proj", "v_proj"]
    convert_adapter(tmp_path / "split", (4, 2), "internlm2", tmp_path / "again")
    again = load_file(tmp_path / "again/adapter_model.safetensors")
    assert again.keys() == low.keys() and all(torch.equal(again[name], low[name]) for name in low)


def test_peft_reads_rank_and_scale_of_a_fused_adapter(bases, tmp_path):
    from peft import LoraConfig, PeftModel

    output = save_run(tmp_path / "out", bases["internlm2"])
    convert_adapter(output / "adapter", (4, 2), "internlm2", tmp_path / "fused")
    linears = torch.nn.ModuleDict({"wqkv": torch.nn.Linear(64, 128), "wo": torch.nn.Linear(64, 64)})
    model = PeftModel(torch.nn.ModuleDict({"attention": linears}), LoraConfig.from_pretrained(tmp_path / "fused"))
    found = model.base_model.model["attention"]
    assert (found["wqkv"].r["default"], found["wqkv"].scaling["default"]) == (24, 2.0)
    assert (found["wo"].r["default"], found["wo"].scaling["default"]) == (8, 2.0)


def test_an_adapter_that_has_the_form_already_is_refused(bases, tmp_path):
    output = save_run(tmp_path / "out", bases["internlm2"])
    words = "got an adapter on model.layers.0.mlp.down_proj, allowed: adapters in the form of internlm2"
    with pytest.raises(ConfigError, match=words):
        convert_adapter(output / "adapter", (4, 2), "llama", tmp_path / "new")


def test_every_weight_of_a_llama_is_expected(bases):
    raw = json.loads((bases["llama"] / "config.json").read_text())
    weights, config = checkpoint_weights(bases["llama"]), model_config(raw, None)
    check_llama(weights, config)
    for name in weights:
        with pytest.raises(ConfigError, match=f"lacks 1 weights, the first is {name}"):
            check_llama({other: weight for other, weight in weights.items() if other != name}, config)


def test_a_family_keeps_its_own_layout_whatever_its_conversion_is():
    """Rows that are moved get their adapter where they lie; what is left out or interpolated stays as it is."""

    def convert_rows(name, tensor, config):
        if name == "fused":
            return [("second", tensor[1::2]), ("first", tensor[0::2])]
        return [] if name == "buffer" else [(name, torch.nn.functional.interpolate(tensor[None, None], size=(9, 4)))]

    values = {name: torch.arange(24.0).view(6, 4) for name in ("fused", "buffer", "positions")}
    weights = {name: Held(value) for name, value in values.items()}
    family = Card("any", lambda raw: object(), lambda config: object(), convert_rows)

    def adapt(name, weight):
        return Held(weight.whole() + 100) if name == "first" else weight

    new = written("own", weights, family, object(), adapt)
    expected = values["fused"].clone()
    expected[0::2] += 100
    assert torch.equal(new["fused"].whole().float(), expected)
    assert all(torch.equal(new[name].whole(), values[name]) for name in ("buffer", "positions"))


class Held(Weight):
    """A weight that is in memory."""

    def __init__(self, tensor):
        self.tensor, self.shape, self.dtype = tensor, tuple(tensor.shape), tensor.dtype

    def rows(self, start, stop):
        return self.tensor[start:stop]
