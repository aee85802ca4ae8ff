"""What an XComposer2's config.json leaves to its weights, and which other InternLM-XComposers these tell. [I/O]"""

from pathlib import Path
from typing import Any

from trainer.errors import ConfigError
from trainer.families.xcomposer2_shape import FIRST, MODEL_TYPE, TILED, other_version, vision_sizes

TOWER = "vit.vision_tower.vision_model."
POSITIONS = "embeddings.position_embedding.weight"
_HD_WEIGHTS = ("plora_glb_GN", "plora_sub_GN")
_V1_WEIGHTS = ("perceive_sampler", "Qformer", "query_tokens", "flag_image_start", "visual_encoder")


def completed(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A config.json as this project knows it: with the family's name, and with `img_size`, which the table of positions
    in the checkpoint tells where the config does not. Raises ConfigError for XComposer v1, 4KHD and 2.5."""
    from trainer.families.weights import read_tensors

    shapes = {name: shape for name, shape, _ in read_tensors(folder)} if _has_weights(folder) else {}
    _refuse_others(raw, list(shapes), folder)
    size = raw.get("img_size")
    table = shapes.get(TOWER + POSITIONS)
    if size is None and table is not None:
        size = round((table[0] - 1) ** 0.5) * vision_sizes(raw)["patch_size"]
    if not isinstance(size, int):
        raise ConfigError(f"{folder / 'config.json'}: got no img_size, allowed: the width of an image in pixels")
    return {**raw, "model_type": MODEL_TYPE, "img_size": size}


def _refuse_others(raw: dict[str, Any], names: list[str], folder: Path) -> None:
    if any(part in name for name in names for part in _V1_WEIGHTS):
        got: str | None = FIRST
    else:
        got = TILED if any(name in _HD_WEIGHTS for name in names) else other_version(raw)
    if got is None:
        return
    raise ConfigError(
        f"model.path: got {folder}, {got}, allowed: InternLM-XComposer2 and XComposer2-VL",
        "use internlm/internlm-xcomposer2-vl-7b, or a LLaVA or InternVL checkpoint",
    )


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))
