"""A prompt with images, for generation."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from trainer.data.encode import Encoder
from trainer.data.segment import Segment
from trainer.errors import ConfigError
from trainer.vision.image_form import ImageForm
from trainer.vision.pixels import ImageFileError, Pixels, read_image, to_pixels
from trainer.vision.splice import place_images


def prompt_inputs(
    model: Any, encoder: Encoder, segments: Sequence[Segment], images: Sequence[Path]
) -> dict[str, torch.Tensor]:
    """What `model.generate` takes for one prompt, on the model's device: input_ids and attention_mask, int64 [1, T],
    and with images, one for each mark in the prompt, pixel_values, float32 [N, 3, size, size], and image_mask, bool
    [1, T], for a model that asks for it. The encoder must know the model's form (trainer.vision.form.find_form). Raises
    ConfigError for a model that sees no images and for a file that is none, RowError as place_images does."""
    device, form = next(model.parameters()).device, encoder.form
    if images and form is None:
        raise ConfigError(
            f"got image {images[0]} with a model that reads text alone, allowed: XComposer2, LLaVA or InternVL"
        )
    encoded = encoder.encode([place_images(segments, len(images))])[0]
    ids = torch.tensor([encoded.ids], device=device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if not images or form is None:
        return inputs
    pixels = np.stack([_pixels(path, form) for path in images])
    inputs["pixel_values"] = torch.from_numpy(pixels).to(device)
    if form.masked:
        inputs["image_mask"] = image_mask(ids.shape, [(0, image.start) for image in encoded.images], form).to(device)
    return inputs


def image_mask(shape: Sequence[int], starts: Sequence[tuple[int, int]], form: ImageForm) -> torch.Tensor:
    """bool [B, T], True at the tokens of images that start at these (row, token)."""
    mask = torch.zeros(tuple(shape), dtype=torch.bool)
    for row, start in starts:
        mask[row, start : start + form.tokens.number] = True
    return mask


def _pixels(path: Path, form: ImageForm) -> Pixels:
    try:
        return to_pixels(read_image(path), form)
    except ImageFileError as error:
        raise ConfigError(f"got image {path}: {error}, allowed: an image file") from error
