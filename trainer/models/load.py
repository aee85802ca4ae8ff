"""Checkpoint -> model in memory, quantised while it is read: one weight at a time is held in full precision. [I/O]"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.models.registry import FAMILIES, Family
from trainer.models.tokenizer import require_folder

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
HEAD = "lm_head"


def load_model(config: TrainConfig, device: torch.device) -> Any:
    """The base model on `device`: linear layers in NF4 when asked, the rest in `model.dtype`. Raises ConfigError."""
    assert config.model.path is not None
    folder = checkpoint_folder(config.model.path)
    raw = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    family = FAMILIES.get(str(raw.get("model_type")))
    dtype, quantize = DTYPES[config.model.dtype], config.model.quantization == "nf4"
    if family is None:
        return keep_layout(_auto_model(folder, dtype, quantize, device))
    model = empty_model(family.config(raw), dtype)
    if quantize:
        replace_linears(model, dtype)
    fill(model, family, folder, dtype, device)
    model.is_loaded_in_4bit = quantize  # peft chooses its 4-bit LoRA layers by this
    return keep_layout(model)


def keep_layout(model: Any) -> Any:
    """On CPUs with AVX-512 bitsandbytes rearranges a 4-bit weight at the first answer, in place and with a rounded
    scale; then ranks disagree, and gradients after it are wrong (0.14 instead of 1.44 on the quickstart). Not here."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model


def checkpoint_folder(path: str) -> Path:
    """The folder of a checkpoint, downloaded first when `path` is a name on the hub. Raises ConfigError."""
    folder = Path(path).expanduser()
    if (folder / "config.json").is_file():
        return folder
    if folder.is_dir():
        raise ConfigError(f"model.path: got {path}, a folder without config.json, allowed: the folder of a checkpoint")
    require_folder(path)
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(path, allow_patterns=["*.json", "*.safetensors", "*.model", "*.bin"]))
    except Exception as error:  # many kinds; all of them mean that the name leads nowhere
        raise ConfigError(
            f"model.path: got {path}: not a folder here, and not on the hub: {str(error).splitlines()[0]}"
        ) from error


def empty_model(llama_config: Any, dtype: torch.dtype) -> Any:
    """A Llama without memory for its weights."""
    from transformers import LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(llama_config)
    return model.to(dtype)


def replace_linears(model: torch.nn.Module, dtype: torch.dtype) -> None:
    """Every linear layer but the head becomes an empty 4-bit one (NF4, double quantisation)."""
    from bitsandbytes.nn import Linear4bit

    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear and name != HEAD:
            with torch.device("meta"):
                new = Linear4bit(
                    module.in_features,
                    module.out_features,
                    module.bias is not None,
                    compute_dtype=dtype,
                    compress_statistics=True,
                    quant_type="nf4",
                    quant_storage=dtype,
                )
            model.set_submodule(name, new)


def fill(model: Any, family: Family, folder: Path, dtype: torch.dtype, device: torch.device) -> None:
    """Read every weight into `model`. Raises ConfigError when one is missing, unknown or of another shape."""
    expected = dict(model.named_parameters())
    for name, tensor in read_tensors(folder):
        for new_name, part in family.convert(name, tensor, model.config):
            if new_name not in expected:
                raise ConfigError(f"{folder}: got weight {name}, allowed: the weights of {type(model).__name__}")
            _place(model, new_name, part, expected.pop(new_name), dtype, device)
    if HEAD + ".weight" in expected and model.config.tie_word_embeddings:
        expected.pop(HEAD + ".weight")
        model.tie_weights()
    if expected:
        raise ConfigError(f"{folder}: {len(expected)} weights are missing, the first is {next(iter(expected))}")
    _fill_buffers(model, device)


def read_tensors(folder: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """Every weight of a checkpoint, from safetensors or, without pickle's code, from .bin files."""
    files = sorted(folder.glob("*.safetensors"))
    if files:
        from safetensors import safe_open

        for file in files:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (not a dict)
                    yield name, opened.get_tensor(name)
        return
    files = sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise ConfigError(f"{folder}: no weights: neither *.safetensors nor pytorch_model*.bin")
    for file in files:
        yield from torch.load(file, map_location="cpu", weights_only=True, mmap=True).items()


def _place(
    model: torch.nn.Module, name: str, tensor: torch.Tensor, old: Any, dtype: torch.dtype, device: torch.device
) -> None:
    from bitsandbytes.nn import Linear4bit, Params4bit

    module_name, _, attribute = name.rpartition(".")
    module = model.get_submodule(module_name)
    quantised = isinstance(module, Linear4bit) and attribute == "weight"
    shape = (module.out_features, module.in_features) if quantised else tuple(old.shape)
    if tuple(tensor.shape) != tuple(shape):
        raise ConfigError(f"weight {name}: got shape {list(tensor.shape)}, allowed: {list(shape)} (config.json)")
    tensor = tensor.to(dtype).contiguous()
    if quantised:
        value = Params4bit(
            tensor, requires_grad=False, quant_type="nf4", compress_statistics=True, quant_storage=dtype, module=module
        )
        setattr(module, attribute, value.to(device))
    else:
        setattr(module, attribute, torch.nn.Parameter(tensor.to(device, copy=True), requires_grad=False))


def _fill_buffers(model: Any, device: torch.device) -> None:
    """The rotary embedding computes its own buffers when it is made on a real device."""
    base = model.model
    with device:
        base.rotary_emb = type(base.rotary_emb)(config=model.config)


def _auto_model(folder: Path, dtype: torch.dtype, quantize: bool, device: torch.device) -> Any:
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    quantization = (
        BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=dtype,
        )
        if quantize
        else None
    )
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, quantization_config=quantization, trust_remote_code=False, device_map={"": device}
    )
