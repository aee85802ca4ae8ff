"""Which of the InternLM-XComposers a config.json is of, and what it leaves to the weights. [I/O]

Facts from the makers' modeling and config files: all versions from 2 on call their class
InternLMXComposer2ForCausalLM, and 4KHD and 2.5 differ from 2 in the weights that separate tiles.
"""

from pathlib import Path
from typing import Any

from trainer.errors import ConfigError

MODEL_TYPE = "xcomposer2"
VIT = {  # openai/clip-vit-large-patch14-336
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
}
TOWER = "vit.vision_tower.vision_model."
POSITIONS = "embeddings.position_embedding.weight"
_HD_WEIGHTS = ("plora_glb_GN", "plora_sub_GN")
_V1_WEIGHTS = ("perceive_sampler", "Qformer", "query_tokens", "flag_image_start", "visual_encoder")


def is_xcomposer(raw: dict[str, Any]) -> bool:
    """Whether a config.json is of an InternLM-XComposer, of whatever version: the makers call their configs internlm2,
    too, so the name of the class decides."""
    names = [raw.get("model_type"), *(raw.get("architectures") or []), *(raw.get("auto_map") or {}).values()]
    return any("xcomposer" in str(name).lower() for name in names)


def completed(raw: dict[str, Any], folder: Path) -> dict[str, Any]:
    """A config.json as this project knows it: with the family's name, and with `img_size`, which the table of positions
    in the checkpoint tells where the config does not. Raises ConfigError for XComposer v1, 4KHD and 2.5."""
    from trainer.models.weights import read_tensors

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
    first = [str(name) for name in raw.get("architectures") or [raw.get("model_type")]]
    if any(part in name for name in names for part in _V1_WEIGHTS) or any("XComposerFor" in name for name in first):
        got = "an InternLM-XComposer v1 checkpoint (a query transformer in front of InternLM v1)"
    elif any(name in _HD_WEIGHTS for name in names) or "hd_num" in raw or raw.get("max_length", 0) >= 16384:
        got = "an InternLM-XComposer2-4KHD or 2.5 checkpoint (images in tiles, with separators between them)"
    else:
        return
    raise ConfigError(
        f"model.path: got {folder}, {got}, allowed: InternLM-XComposer2 and XComposer2-VL",
        "use internlm/internlm-xcomposer2-vl-7b, or a LLaVA or InternVL checkpoint",
    )


def _has_weights(folder: Path) -> bool:
    return any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin"))


def vision_sizes(raw: dict[str, Any]) -> dict[str, Any]:
    """The sizes of the tower, as for a CLIPVisionConfig."""
    return {**VIT, **(raw.get("vision_config") or {})}
