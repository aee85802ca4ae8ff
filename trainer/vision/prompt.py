"""A prompt with images, for generation."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from trainer.data.encode import Encoder
from trainer.data.segment import Segment
from trainer.errors import ConfigError
from trainer.vision.form import ImageForm
from trainer.vision.pixels import to_pixels
from trainer.vision.splice import place_images


def prompt_inputs(
    model: Any, encoder: Encoder, segments: Sequence[Segment], images: Sequence[Image.Image], form: ImageForm | None
) -> dict[str, torch.Tensor]:
    """What `model.generate` takes for a prompt with images (trainer.vision.pixels.read_image), on the model's device;
    the encoder must know the form's tokens. Raises ConfigError when the model sees no images, RowError as
    place_images does."""
    device = next(model.parameters()).device
    if images and form is None:
        raise ConfigError("got an image with a model that reads text alone, allowed: an XComposer2, LLaVA or InternVL")
    encoded = encoder.encode([place_images(segments, len(images))])[0]
    ids = torch.tensor([encoded.ids], device=device)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if not images or form is None:
        return inputs
    pixels = np.stack([to_pixels(image, form) for image in images])
    inputs["pixel_values"] = torch.from_numpy(pixels).to(device)
    if form.masked:
        inputs["image_mask"] = image_mask(ids.shape, [(0, start) for start, _ in encoded.images], form).to(device)
    return inputs


def image_mask(shape: Sequence[int], starts: Sequence[tuple[int, int]], form: ImageForm) -> torch.Tensor:
    """bool [B, T], True at the tokens of images that start at these (row, token)."""
    mask = torch.zeros(tuple(shape), dtype=torch.bool)
    for row, start in starts:
        mask[row, start : start + form.tokens.number] = True
    return mask
