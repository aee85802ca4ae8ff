"""Bases, adapters and run folders for the tests of merging, made without training."""

import json
import math
import os
import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file

from tests.trainer.conftest import QUICKSTART
from trainer.config.job import TrainConfig, config_text
from trainer.models.load import load_model
from trainer.models.lora import attach_lora
from trainer.new_model.create import save_internlm2

CPU = torch.device("cpu")
SHAPE = {"vocab_size": 600, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
         "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 256, "bos_token_id": 1,
         "eos_token_id": 2, "pad_token_id": 2, "tie_word_embeddings": False}  # fmt: skip
SPECIAL = {"internlm": {"num_key_value_heads": 4}, "internlm3": {"head_dim": 16}, "qwen3": {"head_dim": 16},
           **{family: {"head_dim": 16, "tie_word_embeddings": True} for family in ("gemma", "gemma2", "gemma3_text")}}
# families that are another one with another rope
ROPES = {"internlm2.5": ("internlm2", {"rope_type": "dynamic", "rope_theta": 5e7, "factor": 2.5})}


def save_base(folder, family, tokenizer, *, dtype=torch.bfloat16, rope=None, **changed):
    """A random checkpoint of a family in its own layout, with a tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    family, rope = ROPES.get(family, (family, rope))
    shape = {**SHAPE, **SPECIAL.get(family, {}), **changed}
    torch.manual_seed(5)
    ropes = {"rope_parameters": rope or {"rope_type": "default", "rope_theta": 1e4}}
    if family in ("internlm", "internlm2"):
        config = AutoConfig.for_model("llama", **shape, attention_bias=family == "internlm", **ropes)
    else:
        config = AutoConfig.for_model(family, **shape, **(ropes if rope else {}))
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    for name, parameter in model.named_parameters():
        parameter.data.normal_(0, 0.06).add_("norm" in name)
    folder.mkdir(parents=True)
    if family == "internlm2":
        save_internlm2(model.state_dict(), config, folder, [2])
    elif family == "internlm":
        save_file(model.state_dict(), folder / "model.safetensors", metadata={"format": "pt"})
        raw = {**shape, "model_type": "internlm", "bias": True, "rms_norm_eps": config.rms_norm_eps,
               "hidden_act": "silu", "rotary": {"type": "dynamic", "base": 10000}}  # fmt: skip
        (folder / "config.json").write_text(json.dumps(raw))
    else:
        model.save_pretrained(folder)
    copy_tokenizer(folder, family, tokenizer)
    return folder


def copy_tokenizer(folder, family, tokenizer):
    """InternLM's checkpoints have a tokenizer.model and say its class; the others a tokenizer.json."""
    shutil.copy(tokenizer / "tokenizer.model", folder)
    if family.startswith("internlm"):
        shutil.copy(tokenizer / "tokenizer_config.json", folder)
        return
    from trainer.models.tokenizer import load_tokenizer

    load_tokenizer(str(tokenizer)).save_pretrained(folder)


def run_config(base, output, template="internlm2", quantization="nf4", lora=None):
    model = {"path": str(base), "quantization": quantization, "chat_template": template}
    return TrainConfig.model_validate({
        "settings": {"output_dir": str(output)},
        "model": {**model, "lora": {"r": 8, "dropout": 0.0, **(lora or {})}},
        "data": {"sources": [{"path": str(QUICKSTART / "facts.jsonl"), "format": "messages"}], "max_length": 128},
        "runtime": {"sample_prompts": ["Who wrote it?"]},
    })  # fmt: skip


def plain(config):
    """The same config with its base in float32, as it is on disk."""
    changed = {"quantization": "none", "dtype": "fp32"}
    return config.model_copy(update={"model": config.model.model_copy(update=changed)})


def save_run(output, base, **options):
    """An output folder as a run leaves it, with an adapter of random numbers."""
    config = run_config(base, output, **options)
    output.mkdir(parents=True)
    (output / "config.yaml").write_text(config_text(config.model_dump(mode="json")))
    torch.manual_seed(6)
    model = attach_lora(load_model(plain(config), CPU), config.model.lora, str(base))
    if config.model.lora.init == "pissa":
        model.save_pretrained(output / "pissa_start")
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            grown = 1.1 if "magnitude" in name else 1.0
            parameter.data.mul_(grown).add_(torch.randn_like(parameter) * 0.02)
    start = {"path_initial_model_for_weight_conversion": str(output / "pissa_start")}
    model.save_pretrained(output / "adapter", **(start if config.model.lora.init == "pissa" else {}))
    return output


def write_large(folder, layers, shard_bytes, *, hidden=256, inner=1024, pickled=False, rank=16):
    """A base of InternLM2's shape with `layers` layers in shards, and an adapter on it, as a run's output folder. No
    tokenizer: only its weights can be merged."""
    base, output = folder / "base", folder / "out"
    base.mkdir(parents=True)
    (output / "adapter").mkdir(parents=True)
    heads, kv, head, vocab = hidden // 32, hidden // 128, 32, 4096
    raw = {**SHAPE, "model_type": "internlm2", "vocab_size": vocab, "hidden_size": hidden, "intermediate_size": inner,
           "num_hidden_layers": layers, "num_attention_heads": heads, "num_key_value_heads": kv, "bias": False,
           "rms_norm_eps": 1e-5, "rope_theta": 1e6, "hidden_act": "silu"}  # fmt: skip
    (base / "config.json").write_text(json.dumps(raw))
    queries, keys = heads * head, kv * head
    matrices = {"attention.wqkv": (queries + 2 * keys, hidden), "attention.wo": (hidden, queries),
                "feed_forward.w1": (inner, hidden), "feed_forward.w3": (inner, hidden),
                "feed_forward.w2": (hidden, inner)}  # fmt: skip
    shapes = {"model.tok_embeddings.weight": (vocab, hidden)}
    for layer in range(layers):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in matrices.items()}
        shapes |= {f"model.layers.{layer}.{name}.weight": (hidden,) for name in ("attention_norm", "ffn_norm")}
    shapes |= {"model.norm.weight": (hidden,), "output.weight": (vocab, hidden)}
    _write_shards(shapes, base, shard_bytes, pickled)
    linears = {"self_attn.q_proj": (queries, hidden), "self_attn.k_proj": (keys, hidden),
               "self_attn.v_proj": (keys, hidden), "self_attn.o_proj": (hidden, queries),
               "mlp.gate_proj": (inner, hidden), "mlp.up_proj": (inner, hidden), "mlp.down_proj": (hidden, inner)}
    low = {}
    for layer in range(layers):
        for name, (rows, columns) in linears.items():
            at = f"base_model.model.model.layers.{layer}.{name}"
            low[at + ".lora_A.weight"], low[at + ".lora_B.weight"] = torch.randn(rank, columns), torch.randn(rows, rank)
    save_file(low, output / "adapter/adapter_model.safetensors", metadata={"format": "pt"})
    adapter = {"peft_type": "LORA", "r": rank, "lora_alpha": rank, "target_modules": sorted(linears)}
    (output / "adapter/adapter_config.json").write_text(json.dumps(adapter))
    (output / "config.yaml").write_text(config_text(run_config(base, output).model_dump(mode="json")))
    return output


def _write_shards(shapes, folder, shard_bytes, pickled):
    room = math.ceil(sum(2 * math.prod(shape) for shape in shapes.values()) / shard_bytes)
    shards, held, some = [{}], 0, (torch.randn(2**20) * 0.05).bfloat16()
    for name, shape in shapes.items():
        if held + 2 * math.prod(shape) > shard_bytes:
            shards.append({})
            held = 0
        held += 2 * math.prod(shape)
        shards[-1][name] = some.repeat(-(-math.prod(shape) // len(some)))[: math.prod(shape)].view(shape).clone()
    assert len(shards) >= room
    for number, shard in enumerate(shards, 1):
        if pickled:
            torch.save(shard, folder / f"pytorch_model-{number:05}-of-{len(shards):05}.bin")
        else:
            save_file(shard, folder / f"model-{number:05}-of-{len(shards):05}.safetensors", metadata={"format": "pt"})


def measure_merge(output, target):
    """Bytes of host memory that merging takes beyond what the process had before, at most."""
    from trainer.checkpoints.results import describe, find_result
    from trainer.export.merge import make_plan
    from trainer.export.shards import write_checkpoint

    trained = describe(find_result(Path(output)))
    torch.ones(8, 8) @ torch.ones(8, 8)  # the libraries of arithmetic are loaded
    before = _memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from now on
    Path(target).mkdir()
    write_checkpoint(make_plan(trained, "auto").weights, Path(target))
    return _memory("VmHWM") - before


def _memory(name):
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def _measure_all(folders):
    """Print the peak of merging into `merged` beside each output folder, each in a process that has not merged yet."""
    from transformers import LlamaConfig

    LlamaConfig()
    for folder in folders:
        sys.stdout.flush()
        if os.fork() == 0:
            print(measure_merge(folder, Path(folder).with_name("merged")), flush=True)
            os._exit(0)
        assert os.wait()[1] == 0


if __name__ == "__main__":
    torch.set_num_threads(1)
    _measure_all(sys.argv[1:])
