"""Loading to 4 bits beside transformers', and merging beside PEFT's: time and peak memory, in processes of their own.

    python bench/models.py --device cuda --hidden 4096 --layers 32 --shard-gb 2
    python bench/models.py --model DIR            # a checkpoint of yours instead of seeded ones

Seeded checkpoints have InternLM2's proportions (a feed-forward width of 3.5 hidden, heads of 128, a key/value head for
four heads, 92,544 tokens), one in InternLM2's layout and one with the same numbers in Llama's, which transformers can
read. Files are in the page cache. Pairs run one after the other; the table has medians. Peaks of host memory are beyond
what the process had with its libraries imported. Prints tables, and as its last line one JSON object.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
VOCABULARY, HEAD, RANK = 92544, 128, 64
MERGE_LAYERS = (12, 24, 48)


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=1024, help="width, a multiple of 512 (default: 1024)")
    parser.add_argument("--layers", type=int, default=24, help="layers of the checkpoint to load (default: 24)")
    parser.add_argument("--model", type=Path, help="load this checkpoint instead of seeded ones")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--merge-layers", type=int, nargs="*", default=MERGE_LAYERS, help="layers to merge")
    parser.add_argument("--shard-gb", type=float, default=0.25, help="10^9 bytes of a file (default: 0.25)")
    parser.add_argument("--runs", type=int, default=3, help="pairs of runs (default: 3)")
    parser.add_argument("--folder", type=Path, help="where checkpoints are made (default: a temporary folder)")
    parser.add_argument("--measure", help=argparse.SUPPRESS)  # JSON: one measurement, in this process
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    if options.measure:
        print(json.dumps(measure(**json.loads(options.measure))))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        figures = {"device": device_name(options.device), "load": loads(Path(name), options)}
        figures["merge"] = [merges(Path(name), layers, options) for layers in options.merge_layers]
    print(json.dumps(figures))


def loads(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of loading, by who loads which layout."""
    if options.model:
        bases = {"own": options.model}
    else:
        bases = {kind: folder / f"load-{kind}" for kind in ("llama", "internlm2")}
        save_checkpoints(bases, options)
    kinds = [(f"launch, {layout}", "load", path) for layout, path in bases.items()]
    theirs = bases.get("llama", bases.get("own"))
    assert theirs is not None
    if json.loads((theirs / "config.json").read_text())["model_type"] not in ("internlm", "internlm2"):
        kinds.append(("transformers", "peer_load", theirs))
    found: dict[str, list[dict[str, float]]] = {label: [] for label, _, _ in kinds}
    for _ in range(options.runs):
        for label, kind, path in kinds:
            found[label].append(run({"kind": kind, "base": str(path), "device": options.device}))
    rows = {label: medians(some) for label, some in found.items()}
    size, shard = sizes(theirs)
    print(f"to 4 bits on {options.device}, {size / 1e9:.2f} GB in bf16, largest file {shard / 1e9:.2f} GB")
    print(f"{'':24} {'seconds':>9} {'host peak GB':>13} {'/ file':>7} {'GPU peak GB':>12} {'GPU kept GB':>12}")
    for label, row in rows.items():
        print(f"{label:24} {row['seconds']:9.2f} {row['host_gb']:13.3f} {row['host_gb'] / (shard / 1e9):7.2f} "
              f"{row['gpu_gb']:12.3f} {row['gpu_kept_gb']:12.3f}", flush=True)  # fmt: skip
    for path in [] if options.model else bases.values():
        shutil.rmtree(path)
    return {"gb": size / 1e9, "shard_gb": shard / 1e9, **rows}


def merges(folder: Path, layers: int, options: argparse.Namespace) -> dict[str, Any]:
    """Medians of merging an adapter into a base of so many layers."""
    base, adapter, target = folder / "base", folder / "adapter", folder / "merged"
    options.layers = layers
    save_checkpoints({"llama": base}, options)
    save_adapter(adapter, options.hidden, layers)
    found: dict[str, list[dict[str, float]]] = {"merge": [], "peer_merge": []}
    for _ in range(options.runs):
        for kind, some in found.items():
            some.append(run({"kind": kind, "base": str(base), "adapter": str(adapter), "target": str(target)}))
            shutil.rmtree(target)
    size, shard = sizes(base)
    rows = {"launch": medians(found["merge"]), "peft": medians(found["peer_merge"])}
    if layers == options.merge_layers[0]:
        print("merging an adapter of rank 64, on the CPU")
        print(f"{'':24} {'layers':>7} {'GB':>7} {'seconds':>9} {'host peak GB':>13} {'/ file':>7}")
    for label, row in rows.items():
        print(f"{label:24} {layers:7} {size / 1e9:7.2f} {row['seconds']:9.2f} {row['host_gb']:13.3f} "
              f"{row['host_gb'] / (shard / 1e9):7.2f}", flush=True)  # fmt: skip
    for path in (base, adapter):
        shutil.rmtree(path)
    return {"layers": layers, "gb": size / 1e9, "shard_gb": shard / 1e9, **rows}


def run(job: dict[str, str]) -> dict[str, float]:
    """One measurement in a fresh process."""
    command = [sys.executable, __file__, "--measure", json.dumps(job)]
    environ = {**os.environ, "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environ, check=False)
    if done.returncode:
        sys.exit(f"{job}: failed\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def measure(kind: str, **job: str) -> dict[str, float]:
    """Seconds and peaks of one kind of work."""
    import torch

    work = WORK[kind](job)
    cuda = job.get("device") == "cuda"
    if cuda:
        torch.zeros(1, device="cuda")
        torch.cuda.reset_peak_memory_stats()
    before = memory("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from now on
    began = time.perf_counter()
    kept = work()
    if cuda:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - began
    assert kept is not None
    gpu = torch.cuda.max_memory_allocated() / 1e9 if cuda else 0.0
    gpu_kept = torch.cuda.memory_allocated() / 1e9 if cuda else 0.0
    return {"seconds": seconds, "host_gb": (memory("VmHWM") - before) / 1e9, "gpu_gb": gpu, "gpu_kept_gb": gpu_kept}


def memory(name: str) -> int:
    """Bytes of this process, mapped files included."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))


def load(job: dict[str, str]) -> Callable[[], Any]:
    """Ours."""
    import torch

    from trainer.models.load import load_model

    warm_up(job["device"])
    return lambda: load_model(config(job["base"]), torch.device(job["device"]))


def peer_load(job: dict[str, str]) -> Callable[[], Any]:
    """transformers' own, with the same quantisation."""
    import torch
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    warm_up(job["device"])
    four = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                              bnb_4bit_compute_dtype=torch.bfloat16)  # fmt: skip
    return lambda: AutoModelForCausalLM.from_pretrained(
        job["base"], dtype=torch.bfloat16, quantization_config=four, device_map={"": job["device"]}
    )


def warm_up(device: str) -> None:
    """Import what both need, and start the GPU's kernels."""
    import bitsandbytes
    import torch
    from transformers import LlamaForCausalLM

    assert LlamaForCausalLM
    linear = bitsandbytes.nn.Linear4bit(64, 64, compress_statistics=True, quant_type="nf4")
    linear.to(device)(torch.zeros(1, 64, device=device))


def merge(job: dict[str, str]) -> Callable[[], Any]:
    """Ours, without comparison and tokenizer."""
    from transformers import LlamaConfig

    from trainer.checkpoints.results import Trained
    from trainer.export.merge import make_plan
    from trainer.export.shards import write_checkpoint

    assert LlamaConfig

    def work() -> Any:
        target = Path(job["target"])
        target.mkdir()
        trained = Trained(config(job["base"]), Path(job["adapter"]), job["base"], job["base"], Path.cwd())
        write_checkpoint(make_plan(trained, "auto").weights, target)
        return target

    return work


def peer_merge(job: dict[str, str]) -> Callable[[], Any]:
    """PEFT's merge_and_unload, saved."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, LlamaForCausalLM

    assert LlamaForCausalLM

    def work() -> Any:
        model = AutoModelForCausalLM.from_pretrained(job["base"], dtype=torch.bfloat16)
        merged = PeftModel.from_pretrained(model, job["adapter"]).merge_and_unload()
        merged.save_pretrained(job["target"])
        return merged

    return work


WORK = {"load": load, "peer_load": peer_load, "merge": merge, "peer_merge": peer_merge}


def config(base: str) -> Any:
    """A job's config that names a base; the rest is as by default."""
    from trainer.config.job import TrainConfig

    return TrainConfig.model_validate({"model": {"path": base}, "data": {"sources": [{"path": "unused"}]}})


def save_checkpoints(folders: dict[str, Path], options: argparse.Namespace) -> None:
    """The same seeded numbers in each of the layouts."""
    from trainer.export.layout import written, written_config
    from trainer.export.shards import write_checkpoint

    llama = llama_config(options.hidden, options.layers)
    weights = {name: seeded(shape) for name, shape in shapes(llama).items()}
    for layout, folder in folders.items():
        folder.mkdir()
        new = written(layout, weights, None, llama, lambda name, weight: weight)
        write_checkpoint(new, folder, int(options.shard_gb * 1e9))
        (folder / "config.json").write_text(json.dumps(written_config(layout, {}, llama)))


def llama_config(hidden: int, layers: int) -> Any:
    """A Llama of InternLM2's proportions."""
    from transformers import LlamaConfig

    return LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=hidden * 7 // 2, num_hidden_layers=layers,
        num_attention_heads=hidden // HEAD, num_key_value_heads=hidden // HEAD // 4, max_position_embeddings=32768,
        rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, pad_token_id=2,
        rope_parameters={"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0},
    )  # fmt: skip


def shapes(llama: Any) -> dict[str, tuple[int, ...]]:
    """Names and shapes of its weights."""
    import torch
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in LlamaForCausalLM(llama).state_dict().items()}


def seeded(shape: tuple[int, ...]) -> Any:
    """A weight of small seeded numbers, which take no memory until they are written."""
    import torch

    from trainer.export.weights import Weight

    numbers = (torch.randn(2**22, generator=torch.Generator().manual_seed(1)) * 0.02).bfloat16()

    class Seeded(Weight):
        def __init__(self) -> None:
            self.shape, self.dtype = shape, torch.bfloat16

        def rows(self, start: int, stop: int) -> torch.Tensor:
            count = (stop - start) * (shape[1] if len(shape) > 1 else 1)
            return numbers.repeat(-(-count // len(numbers)))[:count].view(stop - start, *shape[1:])

    return Seeded()


def save_adapter(folder: Path, hidden: int, layers: int) -> None:
    """A seeded adapter on all linear layers, as PEFT writes it."""
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(2)
    folder.mkdir()
    low = {}
    linears = {name: shape for name, shape in shapes(llama_config(hidden, layers)).items() if "_proj" in name}
    for name, (rows, columns) in linears.items():
        at = "base_model.model." + name.removesuffix(".weight")
        low[at + ".lora_A.weight"], low[at + ".lora_B.weight"] = torch.randn(RANK, columns), torch.zeros(rows, RANK)
        low[at + ".lora_B.weight"].normal_(0, 0.01)
    save_file(low, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    targets = sorted({name.split(".")[-2] for name in linears})
    settings = {"peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 16, "target_modules": targets}
    (folder / "adapter_config.json").write_text(json.dumps(settings))


def sizes(folder: Path) -> tuple[int, int]:
    """Bytes of all weights, and of the largest file."""
    files = [file.stat().st_size for file in [*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]]
    return sum(files), max(files)


def medians(rows: list[dict[str, float]]) -> dict[str, float]:
    """Of each figure."""
    return {key: round(statistics.median(row[key] for row in rows), 4) for key in rows[0]}


def device_name(device: str) -> str:
    """What the measurements ran on."""
    import torch

    return torch.cuda.get_device_name() if device == "cuda" else f"CPU, {os.cpu_count()} cores"


if __name__ == "__main__":
    main()
