"""Checkpoint -> model in memory, quantised while it is read: one weight at a time is held in full precision. In ZeRO-3
the ranks share the reading, and keep parts (trainer.parallel.partition). [I/O]"""

from functools import partial
from pathlib import Path
from typing import Any

import torch

from trainer.config.job import TrainConfig
from trainer.errors import ConfigError
from trainer.families.card import Card
from trainer.families.registry import find_family
from trainer.families.vision_parts import PATTERN
from trainer.families.weights import file_of, read_tensors
from trainer.models.experts import require_quantisable
from trainer.models.hub import SEEING, auto_class, checkpoint_folder, read_config, require_class
from trainer.models.quantise import OUTLIERS, QUANTISED, replace_linears
from trainer.models.weight_loader import WeightLoader
from trainer.parallel.partition import Partition

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
HEAD = "lm_head"


def load_model(config: TrainConfig, device: torch.device, split: Partition | None = None) -> Any:
    """The base model on `device`: linear layers quantised when asked, the rest in `model.dtype`; with `split` every
    rank has its part of each weight. Raises ConfigError."""
    model = config.model
    assert model.path is not None
    if split is None:  # transformers would split what is made to count; the engine has asked before
        require_quantisable(model)
    folder = checkpoint_folder(model.path, model.revision, model.trust_remote_code)
    raw = read_config(folder)
    family = find_family(raw)
    dtype, quantization = DTYPES[model.dtype], model.quantization
    if family is None:
        require_class(model.path, raw, model.trust_remote_code)
        target = None if split else device
        return keep_layout(_auto_model(folder, raw, dtype, quantization, target, model.trust_remote_code))
    loaded = empty_model(family, family.config(raw))
    if quantization != "none":
        replace_linears(loaded, quantization, dtype, keep=HEAD)
    fill(loaded, family, folder, dtype, device, split)
    loaded.is_loaded_in_4bit = quantization == "nf4"  # peft chooses its LoRA layers by these
    loaded.is_loaded_in_8bit = quantization == "int8"
    return keep_layout(_with_generation(loaded, folder))


def keep_layout(model: Any) -> Any:
    """On CPUs with AVX-512 bitsandbytes rearranges a 4-bit weight at the first answer, in place and with a rounded
    scale; then ranks disagree, and gradients after it are wrong (0.14 instead of 1.44 on the quickstart). Not here."""
    from bitsandbytes.nn import Linear4bit

    for module in model.modules():
        if isinstance(module, Linear4bit):
            module.support_avx512bf16_for_cpu = False
    return model


def empty_model(family: Card, config: Any) -> Any:
    """A family's model without memory for its weights; its buffers, which are computed, are there."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = family.model(config)
    model.tie_weights()  # which were parted as each became an empty one
    return model


def fill(
    model: Any, family: Card, folder: Path, dtype: torch.dtype, device: torch.device, split: Partition | None = None
) -> None:
    """Read every weight into `model`. Raises ConfigError when one is missing, unknown or of another shape."""
    expected = dict(model.named_parameters(remove_duplicate=False))
    move, heads = WeightLoader(dtype, device), []
    for turn, (name, shape, read) in enumerate(read_tensors(folder)):
        mine = split is None or split.owner(turn) == torch.distributed.get_rank()
        tensor = move(read() if mine else torch.empty(shape, device="meta"))
        parts = _converted(model, family, folder, name, tensor, expected)
        del tensor  # and of its parts one after the other: the next weight is read when nothing is left of this one
        while parts:
            new_name, part = parts.pop(0)
            del expected[new_name]
            if new_name == f"{HEAD}.weight" and model.config.tie_word_embeddings:
                heads.append(part)  # the embedding once more
                continue
            module, attribute = _place(model, new_name, part, dtype, device)
            del part
            if split is not None:
                split.share(module, attribute, split.owner(turn))
    if model.config.tie_word_embeddings:
        expected.pop(f"{HEAD}.weight", None)
        model.tie_weights()
        _require_tied(model, heads, folder)
    if expected:
        raise ConfigError(f"{folder}: {len(expected)} weights are missing, the first is {next(iter(expected))}")
    _move_buffers(model, device)


def _converted(
    model: Any, family: Card, folder: Path, name: str, tensor: torch.Tensor, expected: dict[str, Any]
) -> list[tuple[str, torch.Tensor]]:
    """One weight of the checkpoint as weights of the class. Raises ConfigError when it cannot be one of `expected`."""
    try:
        parts = family.convert(name, tensor, model.config)
        problem = next(filter(None, (_misfit(model, new_name, part, expected) for new_name, part in parts)), None)
    except RuntimeError as error:  # a fused weight that cannot be cut into its parts
        parts, problem = [], f"got shape {list(tensor.shape)}, which does not fit config.json ({error})"
    if problem:
        raise ConfigError(f"{file_of(folder, name)}: weight {name}: {problem}")
    return parts


def _misfit(model: Any, name: str, tensor: torch.Tensor, expected: dict[str, Any]) -> str | None:
    """Why a weight cannot be one of `expected`, or None."""
    if name not in expected:
        return f"got a weight that {type(model).__name__} has not, or has already"
    module_name, _, attribute = name.rpartition(".")
    module = model.get_submodule(module_name)
    quantised = attribute == "weight" and type(module).__name__ in QUANTISED
    shape = [module.out_features, module.in_features] if quantised else list(expected[name].shape)
    if list(tensor.shape) != shape:
        return f"got shape {list(tensor.shape)} for {name}, allowed: {shape} (config.json)"
    return None


def _require_tied(model: Any, heads: list[torch.Tensor], folder: Path) -> None:
    """A head of its own would be lost. In ZeRO-3 no rank has both whole."""
    embedding = model.get_input_embeddings().weight
    if hasattr(embedding, "ds_id") or all(torch.equal(head, embedding) for head in heads):
        return
    raise ConfigError(
        f"{folder}: config.json says tie_word_embeddings true, but {HEAD}.weight is not the embedding, allowed: false",
        "correct tie_word_embeddings in config.json; the head was trained on its own",
    )


def _place(
    model: torch.nn.Module, name: str, tensor: torch.Tensor, dtype: torch.dtype, device: torch.device
) -> tuple[torch.nn.Module, str]:
    """Put a weight where it belongs, which is returned; one of the meta device becomes memory without content."""
    module_name, _, attribute = name.rpartition(".")
    module = model.get_submodule(module_name)
    if attribute == "weight" and type(module).__name__ in QUANTISED:
        setattr(module, attribute, QUANTISED[type(module).__name__](tensor.contiguous(), dtype, device, module))
        return module, attribute
    if tensor.is_meta:
        data = torch.empty(tensor.shape, dtype=dtype, device=device)
    else:  # a part of a fused weight does not keep all of it
        data = tensor.contiguous() if tensor.untyped_storage().nbytes() == tensor.nbytes else tensor.clone()
    setattr(module, attribute, torch.nn.Parameter(data, requires_grad=False))
    return module, attribute


def _move_buffers(model: torch.nn.Module, device: torch.device) -> None:
    for module in model.modules():
        for name, buffer in module.named_buffers(recurse=False):
            module._buffers[name] = buffer.to(device)


def _with_generation(model: Any, folder: Path) -> Any:
    """With the checkpoint's own generation_config.json, where it has one."""
    from transformers import GenerationConfig

    if (folder / "generation_config.json").is_file():
        model.generation_config = GenerationConfig.from_pretrained(folder)
    return model


def _auto_model(
    folder: Path,
    raw: dict[str, Any],
    dtype: torch.dtype,
    quantization: str,
    device: torch.device | None,
    trust_remote_code: bool,
) -> Any:
    """Through transformers' own class, or, trusted, one that the checkpoint brings. No `device`: in ZeRO-3, where
    transformers splits what is not quantised."""
    from transformers import BitsAndBytesConfig

    unquantised = [HEAD, PATTERN] if raw.get("model_type") in SEEING else None
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
    return auto_class(raw).from_pretrained(
        folder,
        dtype=dtype,
        quantization_config=kinds[quantization]() if quantization in kinds else None,
        trust_remote_code=trust_remote_code,
        device_map={"": device} if device is not None else None,
    )
