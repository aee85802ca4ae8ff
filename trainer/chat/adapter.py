"""An adapter on a base that may not be its own: names and shapes are compared before anything is loaded. [I/O]"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.checkpoints.results import read_adapter
from trainer.errors import ConfigError
from trainer.models.lora import PREFIX

SIDES = {"lora_A": 1, "lora_B": 0}  # which dimension of each is the layer's own: [r, in] and [out, r]


def refuse_quantised(folder: Path, quantization: str) -> None:
    """Raise ConfigError for a PiSSA checkpoint on a quantised base: what it started from is taken out of the base's
    weights first (PEFT does it when it loads one), which only whole ones allow."""
    if quantization != "none" and str(read_adapter(folder).get("init_lora_weights")).startswith("pissa"):
        raise ConfigError(
            f"quantization: got {quantization} with {folder}, a PiSSA checkpoint, allowed: none (the base gives up its "
            "largest singular vectors)",
            "leave --quantization out, or take the run's result",
        )


def put_adapter(model: Any, folder: Path, base: str, tell: Callable[[str], None]) -> Any:
    """The model with the adapter. Tells when the base has another name than the adapter's. Raises ConfigError when its
    layers are not the model's."""
    from peft import PeftModel

    trained_on = str(read_adapter(folder).get("base_model_name_or_path") or "")
    shapes = _shapes(folder)
    problem = _misfit(model, shapes)
    if problem:
        raise ConfigError(
            f"{folder}: an adapter of another base: {problem} (trained on {trained_on or 'a base without name'}, "
            f"put on {base})",
            "name the base that it was trained on",
        )
    if trained_on and Path(trained_on).name != Path(base).name:
        tell(f"warning: the adapter was trained on {trained_on}, and is put on {base}")
    return PeftModel.from_pretrained(model, folder).eval()


def _shapes(folder: Path) -> dict[str, list[int]]:
    from safetensors import SafetensorError, safe_open

    path = folder / "adapter_model.safetensors"
    try:
        with safe_open(path, framework="pt") as weights:
            return {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}", "the adapter was not written to the end") from error


def _misfit(model: Any, shapes: dict[str, list[int]]) -> str:
    """The first layer of an adapter that the model has not, or has in another size."""
    modules = dict(model.named_modules())
    for name, shape in shapes.items():
        layer, _, rest = name.removeprefix(PREFIX).partition(".lora_")
        side = f"lora_{rest}".split(".")[0]
        if side not in SIDES:
            continue
        module = modules.get(layer)
        if module is None or not hasattr(module, "in_features"):
            return f"it has {layer}, which the model has not"
        size = (module.out_features, module.in_features)[SIDES[side]]
        if shape[SIDES[side]] != size:
            return f"its {layer}.{side} is {shape}, allowed: {size} in place {SIDES[side]}"
    return ""
