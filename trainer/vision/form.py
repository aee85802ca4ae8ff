"""How a checkpoint's model takes an image, from its config files. [I/O]"""

from pathlib import Path
from typing import Any

from trainer.families.xcomposer2_shape import MODEL_TYPE, vision_sizes
from trainer.models.hub import config_folder, read_config, read_fields
from trainer.vision.image_form import ImageForm, ImageTokens

Scale = tuple[tuple[float, ...], tuple[float, ...]]

# OpenAI's clip-vit-large-patch14-336, and ImageNet's (InternVL's), per channel of values from 0 to 1
CLIP = ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711))
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
PROCESSORS = ("preprocessor_config.json", "processor_config.json")


def find_form(path: str | None, tokenizer: Any, revision: str | None = None) -> ImageForm | None:
    """The form of a checkpoint, by its folder or its name on the hub; None for a model that reads text alone, and for
    one that is yet to be made (no `path`). Raises ConfigError for a config that is missing or malformed and for an
    XComposer that this project cannot load, UnreachableError for what cannot be read now."""
    if path is None:
        return None
    folder = config_folder(path, revision)
    raw = read_config(folder)
    reader = FORMS.get(str(raw.get("model_type")))
    return reader(raw, folder, tokenizer) if reader else None


def _xcomposer2(raw: dict[str, Any], folder: Path, tokenizer: Any) -> ImageForm:
    side = raw["img_size"] // vision_sizes(raw)["patch_size"]
    unknown = tokenizer.convert_tokens_to_ids("<unk>")  # no image token is in the vocabulary, and no text becomes this
    return ImageForm(raw["img_size"], ImageTokens(unknown, side * side), *CLIP, masked=True)


def _llava(raw: dict[str, Any], folder: Path, tokenizer: Any) -> ImageForm:
    """transformers' LlavaConfig. Its towers of other kinds than CLIP have no class token."""
    vision, processor = raw.get("vision_config") or {}, _processor(folder)
    size, patch = int(vision.get("image_size", 336)), int(vision.get("patch_size", 14))
    has_class_token = "clip" in str(vision.get("model_type", "clip_vision_model"))
    kept = has_class_token and raw.get("vision_feature_select_strategy", "default") == "full"
    image = raw.get("image_token_id", raw.get("image_token_index", 32000))
    return ImageForm(
        size,
        ImageTokens(int(image), (size // patch) ** 2 + kept),
        *_scale(processor, CLIP),
        bool(processor.get("do_center_crop", has_class_token)),
    )


def _internvl(raw: dict[str, Any], folder: Path, tokenizer: Any) -> ImageForm:
    """transformers' InternVLConfig: one tile an image."""
    size = (raw.get("vision_config") or {}).get("image_size", 448)
    size = int(size[0] if isinstance(size, list) else size)
    known = tokenizer.get_vocab()
    before, after = ((known[token],) if token in known else () for token in ("<img>", "</img>"))
    image, count = int(raw.get("image_token_id", 151667)), int(raw.get("image_seq_length", 256))
    return ImageForm(size, ImageTokens(image, count, before, after), *_scale(_processor(folder), IMAGENET))


def _processor(folder: Path) -> dict[str, Any]:
    """What the checkpoint says of preparing images; newer ones have it inside the processor's config. Nothing where
    there is neither: the family's usual values hold. Raises ConfigError, UnreachableError."""
    for name in PROCESSORS:
        if (folder / name).is_file():
            found = read_fields(folder / name)
            return dict(found.get("image_processor", found))
    return {}


def _scale(processor: dict[str, Any], usual: Scale) -> Scale:
    return tuple(processor.get("image_mean", usual[0])), tuple(processor.get("image_std", usual[1]))


FORMS = {MODEL_TYPE: _xcomposer2, "llava": _llava, "internvl": _internvl}
