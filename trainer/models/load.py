"""Checkpoint -> model in memory, quantised while it is read: one weight at a time is held in full precision. In ZeRO-3
the ranks share the reading, and keep parts (trainer.models.split). [I/O]"""

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.models.registry import FAMILIES, Family
from trainer.models.split import Split, empty_4bit
from trainer.models.tokenizer import require_folder
from trainer.models.xcomposer2_config import read_config
from trainer.vision.parts import PATTERN, sees_images

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
HEAD = "lm_head"
SEEING = ("llava", "internvl")  # model types of transformers that take images
OUTLIERS = 6.0  # activations beyond it are multiplied in bf16 (LLM.int8's default, and XTuner's)


Read = Callable[[], torch.Tensor]


def load_model(config: TrainConfig, device: torch.device, split: Split | None = None) -> Any:
    """The base model on `device`: linear layers quantised when asked, the rest in `model.dtype`; with `split` every
    rank has its part of each weight. Raises ConfigError."""
    assert config.model.path is not None
    folder = checkpoint_folder(config.model.path)
    raw = read_config(folder)
    family = FAMILIES.get(str(raw.get("model_type")))
    dtype, quantization = DTYPES[config.model.dtype], config.model.quantization
    if family is None:
        return keep_layout(_auto_model(folder, raw, dtype, quantization, None if split else device))
    model = empty_model(family, family.config(raw), dtype)
    if quantization != "none":
        replace_linears(model, quantization, dtype)
    fill(model, family, folder, dtype, device, split)
    model.is_loaded_in_4bit = quantization == "nf4"  # peft chooses its LoRA layers by these
    model.is_loaded_in_8bit = quantization == "int8"
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


def empty_model(family: Family, config: Any, dtype: torch.dtype) -> Any:
    """A model without memory for its weights."""
    with torch.device("meta"):
        model = family.model(config)
    return model.to(dtype)


def replace_linears(model: torch.nn.Module, quantization: str, dtype: torch.dtype) -> None:
    """Every linear layer but the head and those that see images becomes an empty quantised one: `nf4` (with double
    quantisation) or `int8`."""
    from bitsandbytes.nn import Linear4bit, Linear8bitLt

    kinds = {
        "nf4": partial(
            Linear4bit, compute_dtype=dtype, compress_statistics=True, quant_type="nf4", quant_storage=dtype
        ),
        "int8": partial(Linear8bitLt, has_fp16_weights=False, threshold=OUTLIERS),
    }
    for name, module in list(model.named_modules()):
        if type(module) is torch.nn.Linear and name != HEAD and not sees_images(name):
            with torch.device("meta"):
                new = kinds[quantization](module.in_features, module.out_features, module.bias is not None)
            model.set_submodule(name, new)


def fill(
    model: Any, family: Family, folder: Path, dtype: torch.dtype, device: torch.device, split: Split | None = None
) -> None:
    """Read every weight into `model`. Raises ConfigError when one is missing, unknown or of another shape."""
    expected = dict(model.named_parameters())
    for turn, (name, shape, read) in enumerate(read_tensors(folder)):
        mine = split is None or split.owner(turn) == torch.distributed.get_rank()
        tensor = read() if mine else torch.empty(shape, device="meta")
        for new_name, part in family.convert(name, tensor, model.config):
            if new_name not in expected:
                raise ConfigError(f"{folder}: got weight {name}, allowed: the weights of {type(model).__name__}")
            module, attribute = _place(model, new_name, part, expected.pop(new_name), dtype, device)
            if split is not None:
                split.share(module, attribute, split.owner(turn))
    if HEAD + ".weight" in expected and model.config.tie_word_embeddings:
        expected.pop(HEAD + ".weight")
        model.tie_weights()
    if expected:
        raise ConfigError(f"{folder}: {len(expected)} weights are missing, the first is {next(iter(expected))}")
    _fill_buffers(model, device)


def read_tensors(folder: Path) -> Iterator[tuple[str, list[int], Read]]:
    """Name and shape of every weight of a checkpoint, in the same order on every rank, and how to read it: from
    safetensors or, without pickle's code, from .bin files."""
    files = sorted(folder.glob("*.safetensors"))
    if files:
        from safetensors import safe_open

        for file in files:
            with safe_open(file, framework="pt") as opened:
                for name in opened.keys():  # noqa: SIM118  (not a dict)
                    yield name, opened.get_slice(name).get_shape(), partial(opened.get_tensor, name)
        return
    files = sorted(folder.glob("pytorch_model*.bin"))
    if not files:
        raise ConfigError(f"{folder}: no weights: neither *.safetensors nor pytorch_model*.bin")
    for file in files:
        for name, tensor in torch.load(file, map_location="cpu", weights_only=True, mmap=True).items():
            yield name, list(tensor.shape), partial(torch.Tensor.contiguous, tensor)


def _place(
    model: torch.nn.Module, name: str, tensor: torch.Tensor, old: Any, dtype: torch.dtype, device: torch.device
) -> tuple[torch.nn.Module, str]:
    """Put a weight where it belongs, which is returned; one of the meta device becomes memory without content."""
    module_name, _, attribute = name.rpartition(".")
    module = model.get_submodule(module_name)
    quantised = attribute == "weight" and type(module).__name__ in QUANTISED
    shape = (module.out_features, module.in_features) if quantised else tuple(old.shape)
    if tuple(tensor.shape) != tuple(shape):
        raise ConfigError(f"weight {name}: got shape {list(tensor.shape)}, allowed: {list(shape)} (config.json)")
    tensor = tensor.to(dtype).contiguous()
    if quantised:
        setattr(module, attribute, QUANTISED[type(module).__name__](tensor, dtype, device, module))
        return module, attribute
    data = torch.empty_like(tensor, device=device) if tensor.is_meta else tensor.to(device, copy=True)
    setattr(module, attribute, torch.nn.Parameter(data, requires_grad=False))
    return module, attribute


def _in_4bit(tensor: torch.Tensor, storage: torch.dtype, device: torch.device, module: Any) -> Any:
    from bitsandbytes.nn import Params4bit

    if tensor.is_meta:
        return empty_4bit(tensor, storage, device, module)
    value = Params4bit(
        tensor, requires_grad=False, quant_type="nf4", compress_statistics=True, quant_storage=storage, module=module
    )
    return value.to(device)


def _in_8bit(tensor: torch.Tensor, storage: torch.dtype, device: torch.device, module: Any) -> Any:
    from bitsandbytes.nn import Int8Params

    return Int8Params(tensor, requires_grad=False, has_fp16_weights=False).to(device)


QUANTISED = {"Linear4bit": _in_4bit, "Linear8bitLt": _in_8bit}


def _fill_buffers(model: Any, device: torch.device) -> None:
    """The rotary embedding computes its own buffers when it is made on a real device."""
    if hasattr(model, "fill_buffers"):
        model.fill_buffers(device)
        return
    base = model.model
    with device:
        base.rotary_emb = type(base.rotary_emb)(config=model.config)


def _auto_model(
    folder: Path, raw: dict[str, Any], dtype: torch.dtype, quantization: str, device: torch.device | None
) -> Any:
    """Through transformers' own class. No `device`: in ZeRO-3, where transformers splits what is not quantised."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, BitsAndBytesConfig

    seeing = raw.get("model_type") in SEEING
    unquantised = [HEAD, PATTERN] if seeing else None
    kinds = {
        "nf4": partial(
            BitsAndBytesConfig,
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=dtype,
            llm_int8_skip_modules=unquantised,  # of 4 bits, too
        ),
        "int8": partial(
            BitsAndBytesConfig,
            load_in_8bit=True,
            llm_int8_threshold=OUTLIERS,
            llm_int8_skip_modules=unquantised,
        ),
    }
    kind = AutoModelForImageTextToText if seeing else AutoModelForCausalLM
    return kind.from_pretrained(
        folder,
        dtype=dtype,
        quantization_config=kinds[quantization]() if quantization in kinds else None,
        trust_remote_code=False,
        device_map={"": device} if device is not None else None,
    )
