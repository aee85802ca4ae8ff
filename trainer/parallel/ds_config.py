"""TrainConfig + world size -> DeepSpeed's JSON (keys: deepspeed.ai/docs/config-json). Pure but for the user's file.

`auto` stands for what is known only when the model is there: the sizes of buckets.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from trainer.config.job import TrainConfig, zero3_problem
from trainer.config.sections import DeepSpeed
from trainer.errors import ConfigError
from trainer.sizing.estimate import LIVE_WEIGHTS, bucket_elements

AUTO = "auto"
ABSENT = object()
FILLED_LATER = {
    "optimizer.params.eps",
    "zero_optimization.reduce_bucket_size",
    "zero_optimization.allgather_bucket_size",
    "zero_optimization.stage3_prefetch_bucket_size",
    "zero_optimization.stage3_param_persistence_threshold",
}  # the last two by transformers, from the model's width


def build_ds_config(config: TrainConfig, world: int, *, on_cpu: bool) -> dict[str, Any] | None:
    """DeepSpeed's configuration, or None without DeepSpeed. Raises ConfigError for the user's own file."""
    settings = config.optimizer.deepspeed
    if settings is None:
        return None
    if settings.config is not None:
        return _users(config, Path(settings.config), world)
    return {
        **_ours(config, world),
        "zero_optimization": _zero(settings, world, on_cpu=on_cpu),
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 10**9,  # the trainer prints its own step line
    }


def zero_stage(ds_config: dict[str, Any] | None) -> int:
    """0 to 3."""
    return int((ds_config or {}).get("zero_optimization", {}).get("stage", 0))


def bucket_sizes(trained: int, stage: int) -> dict[str, int]:
    """Elements of a bucket for a model with this many trained parameters: DeepSpeed allocates them whole, twice when
    communication overlaps, so its default takes 2 GB for an adapter of 0.3 GB."""
    if stage == 0:
        return {}
    return dict.fromkeys(("reduce_bucket_size", "allgather_bucket_size"), bucket_elements(trained))


def fill_buckets(ds_config: dict[str, Any], trained: int) -> None:
    """Put sizes in place of `auto`."""
    zero = ds_config.get("zero_optimization", {})
    zero |= {key: size for key, size in bucket_sizes(trained, zero_stage(ds_config)).items() if zero.get(key) == AUTO}


def _ours(config: TrainConfig, world: int) -> dict[str, Any]:
    """What the job says of DeepSpeed's keys."""
    optimizer = config.optimizer
    return {
        "train_micro_batch_size_per_gpu": optimizer.batch_size,
        "gradient_accumulation_steps": optimizer.accumulation,
        "train_batch_size": optimizer.batch_size * optimizer.accumulation * world,
        "gradient_clipping": optimizer.max_grad_norm,
        "bf16": {"enabled": config.model.dtype == "bf16"},
    }


def _zero(settings: DeepSpeed, world: int, *, on_cpu: bool) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": settings.zero_stage}
    if settings.zero_stage >= 1:
        # one rank has no gradients to send (but weights to fetch, in stage 3), and a CPU no second stream: overlap
        # would be a second bucket for nothing
        overlap = not on_cpu and (world > 1 or settings.zero_stage == 3)
        zero |= {"overlap_comm": overlap, **dict.fromkeys(bucket_sizes(0, 1), AUTO)}
    if settings.offload != "none":
        zero["offload_optimizer"] = _place(settings.offload, settings, on_cpu=on_cpu)
    if settings.offload_weights != "none":
        zero["offload_param"] = _place(settings.offload_weights, settings, on_cpu=on_cpu)
    if settings.zero_stage == 3:
        zero |= {
            "stage3_max_live_parameters": LIVE_WEIGHTS,
            "stage3_max_reuse_distance": LIVE_WEIGHTS,
            "stage3_gather_16bit_weights_on_model_save": True,
        }
    return zero


def _place(device: str, settings: DeepSpeed, *, on_cpu: bool) -> dict[str, Any]:
    path = {"nvme_path": settings.nvme_path} if device == "nvme" else {}
    return {"device": device, **path, "pin_memory": not on_cpu}


def _users(config: TrainConfig, path: Path, world: int) -> dict[str, Any]:
    """The user's JSON with our values where it has `auto` or nothing. Raises ConfigError with every conflict."""
    theirs = _read(path)
    conflicts = list(_conflicts(theirs, config, world))
    if conflicts:
        lines = "".join(f"\n  {conflict}" for conflict in conflicts)
        raise ConfigError(f"optimizer.deepspeed.config: {path} contradicts this job:{lines}")
    return _filled(theirs, config, world)


def _read(path: Path) -> dict[str, Any]:
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"optimizer.deepspeed.config: {path}: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"optimizer.deepspeed.config: {path}: not JSON: {error}") from error
    if not isinstance(read, dict) or not isinstance(read.get("zero_optimization", {}), dict):
        raise ConfigError(f"optimizer.deepspeed.config: {path}: got no mapping, allowed: DeepSpeed's JSON object")
    return read


def _shared(config: TrainConfig, world: int) -> Iterator[tuple[str, Any, str]]:
    """DeepSpeed's key, our value, and our field, of all that both sides have."""
    optimizer, ours = config.optimizer, _ours(config, world)
    yield "train_micro_batch_size_per_gpu", ours["train_micro_batch_size_per_gpu"], "optimizer.batch_size"
    yield "gradient_accumulation_steps", ours["gradient_accumulation_steps"], "optimizer.accumulation"
    yield "train_batch_size", ours["train_batch_size"], "optimizer.batch_size x accumulation x processes"
    yield "gradient_clipping", ours["gradient_clipping"], "optimizer.max_grad_norm"
    yield "bf16.enabled", ours["bf16"]["enabled"], "model.dtype"
    yield "fp16.enabled", False, "model.dtype"
    yield "optimizer.type", "AdamW", "the trainer's optimizer"
    yield "optimizer.params.lr", optimizer.lr, "optimizer.lr"
    yield "optimizer.params.betas", optimizer.betas, "optimizer.betas"
    yield "optimizer.params.weight_decay", optimizer.weight_decay, "optimizer.weight_decay"


def _conflicts(theirs: dict[str, Any], config: TrainConfig, world: int) -> Iterator[str]:
    """Every value that contradicts one of ours, and every `auto` that we have no value for."""
    shared = list(_shared(config, world))
    for key, ours, field in shared:
        found = _get(theirs, key)
        if found is not ABSENT and found not in (AUTO, ours):
            yield f'{key}: got {json.dumps(found)}, ours {json.dumps(ours)} ({field}): change one, or write "auto"'
    if "scheduler" in theirs:
        yield f"scheduler: got one, ours {config.optimizer.schedule} (optimizer.schedule): remove theirs"
    lora = config.model.lora
    if "optimizer" in theirs and lora is not None and lora.lr_ratio != 1:
        yield f"optimizer: got one, ours has two rates (model.lora.lr_ratio {lora.lr_ratio}): remove one of them"
    for key in _autos(theirs):
        if key not in FILLED_LATER and key not in [shared_key for shared_key, _, _ in shared]:
            yield f'{key}: got "auto", ours none: write a value'
    problem = zero3_problem(config.model) if zero_stage(theirs) == 3 else None
    if problem:
        yield problem


def _filled(theirs: dict[str, Any], config: TrainConfig, world: int) -> dict[str, Any]:
    """Their settings, with ours where they have `auto`, and where they leave out what DeepSpeed cannot do without."""
    filled: dict[str, Any] = json.loads(json.dumps(theirs))
    for key, ours in _ours(config, world).items():
        filled[key] = {**ours, **filled.get(key, {})} if isinstance(ours, dict) else filled.get(key, ours)
    for key, ours, _ in _shared(config, world):
        if _get(filled, key) == AUTO:
            section, _, name = key.rpartition(".")
            (_get(filled, section) if section else filled)[name] = ours
    return filled


def _get(values: dict[str, Any], key: str) -> Any:
    """The value at a dotted key, or ABSENT."""
    found: Any = values
    for part in key.split("."):
        if not isinstance(found, dict) or part not in found:
            return ABSENT
        found = found[part]
    return found


def _autos(values: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """The dotted keys that are `auto`."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _autos(value, f"{prefix}{key}.")
        elif value == AUTO:
            yield prefix + key
