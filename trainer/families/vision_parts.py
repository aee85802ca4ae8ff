"""Which modules of a model see images, by their names. Such a part is never quantised and gets no adapter. Pure."""

import re
from typing import Any

# XComposer2's names, and those of transformers' LLaVA and InternVL
TOWERS = ("vit", "vision_tower")
PARTS = (*TOWERS, "vision_proj", "multi_modal_projector")
PATTERN = rf"(.*\.)?({'|'.join(PARTS)})(\..*)?"


def sees_images(name: str) -> bool:
    """Whether a module is a vision tower, a projector, or inside one."""
    return re.fullmatch(PATTERN, name) is not None


def vision_towers(model: Any) -> list[Any]:
    """The vision towers of a model; none for one that reads text alone."""
    return [module for name, module in model.named_modules() if name.rpartition(".")[2] in TOWERS]
