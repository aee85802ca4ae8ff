"""InternLM-XComposer2 as numbers: which config.json is that of one, and what it has besides InternLM2's weights.

Imports no torch and reads no file. Facts from the makers' modeling and config files: all versions from 2 on call their
class InternLMXComposer2ForCausalLM; 4KHD and 2.5 look at an image in tiles (`hd_num`, longer texts).
"""

from collections.abc import Mapping
from typing import Any

MODEL_TYPE = "xcomposer2"  # as this project calls it, whatever the makers' config.json says
PLORA_RANK = 256  # alpha is the same: the makers' scale is 1
VIT = {  # openai/clip-vit-large-patch14-336
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "patch_size": 14,
    "hidden_act": "quick_gelu",
}
# the others
FIRST = "an InternLM-XComposer v1 checkpoint (a query transformer in front of InternLM v1)"
TILED = "an InternLM-XComposer2-4KHD or 2.5 checkpoint (images in tiles, with separators between them)"
TILED_LENGTH = 16384  # max_length of the versions that look at tiles, at least


def is_xcomposer(raw: Mapping[str, Any]) -> bool:
    """Whether a config.json is of an InternLM-XComposer, of whatever version: the makers call their configs internlm2,
    too, so the name of the class decides."""
    return any("xcomposer" in str(raw.get(key)).lower() for key in ("model_type", "architectures", "auto_map"))


def other_version(raw: Mapping[str, Any]) -> str | None:
    """Which XComposer a config.json is of, when it is not XComposer2."""
    if "XComposerFor" in str(raw.get("architectures") or raw.get("model_type")):
        return FIRST
    length = raw.get("max_length")
    return TILED if "hd_num" in raw or (isinstance(length, int) and length >= TILED_LENGTH) else None


def vision_sizes(raw: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes of the tower, as for a CLIPVisionConfig."""
    own = raw.get("vision_config")
    return {**VIT, **(own if isinstance(own, Mapping) else {})}


def tower_parameters(width: int, inner: int, layers: int, patch: int, side: int) -> int:
    """Of CLIP's vision model without the norm behind it, which is not used. `side`: patches in a row of an image."""
    places = width + 3 * patch * patch * width + (side * side + 1) * width + 2 * width  # class token, patches, norm
    attention, norms = 4 * (width * width + width), 4 * width
    return places + layers * (attention + norms + 2 * width * inner + inner + width)


def projector_parameters(width: int, hidden: int) -> int:
    """Two layers with biases, from the tower's width to the decoder's."""
    return width * hidden + hidden + hidden * hidden + hidden
