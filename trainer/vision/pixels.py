"""Image file -> pixels as a model wants them. [I/O]"""

import warnings
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps

from trainer.vision.image_form import ImageForm

Pixels = npt.NDArray[np.float32]


class ImageFileError(ValueError):
    """An image file that is not there, or cannot be decoded; the text says why."""


def read_image(path: Path) -> Image.Image:
    """The whole image, RGB, upright as its EXIF data says; transparent places are white. Raises ImageFileError."""
    return _opened(path, reduced=False)


def check_image(path: Path) -> None:
    """Decode an image and throw it away; a JPEG at an eighth of its size, which finds the same faults sooner. Raises
    ImageFileError."""
    _opened(path, reduced=True)


def to_pixels(image: Image.Image, form: ImageForm) -> Pixels:
    """float32 [3, size, size], scaled by mean and std of the form; bicubic."""
    size = (form.size, form.size)
    resample = Image.Resampling.BICUBIC
    fitted = ImageOps.fit(image, size, resample) if form.crop else image.resize(size, resample)
    values = np.asarray(fitted, dtype=np.float32) / 255
    scaled = (values - np.array(form.mean, dtype=np.float32)) / np.array(form.std, dtype=np.float32)
    return np.ascontiguousarray(scaled.transpose(2, 0, 1))


def _opened(path: Path, *, reduced: bool) -> Image.Image:
    if not path.is_file():
        raise ImageFileError("no such file")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                if reduced:
                    image.draft("RGB", (image.width // 8, image.height // 8))
                return _rgb(ImageOps.exif_transpose(image))
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageFileError(f"more pixels than {Image.MAX_IMAGE_PIXELS}") from error
    except Exception as error:  # Pillow's decoders raise many kinds, all of them about the file
        raise ImageFileError(f"not an image that can be read ({error or type(error).__name__})") from error


def _rgb(image: Image.Image) -> Image.Image:
    if not image.has_transparency_data:
        return image.convert("RGB")
    layers = image.convert("RGBA")
    ground = Image.new("RGBA", layers.size, "white")
    return Image.alpha_composite(ground, layers).convert("RGB")
