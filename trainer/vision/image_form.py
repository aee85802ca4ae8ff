"""How a model takes an image. Pure."""

from dataclasses import dataclass
from typing import NamedTuple


class ImageTokens(NamedTuple):
    """What an image is among the ids: `number` times the id `fill`, between the ids `before` and `after`."""

    fill: int
    number: int
    before: tuple[int, ...] = ()
    after: tuple[int, ...] = ()


@dataclass(frozen=True)
class ImageForm:
    """`size`: width and height in pixels; `tokens`: what an image is in the sequence; `mean` and `std`: of each channel
    of values from 0 to 1; `crop`: the middle of the image at its own proportions, else all of it squeezed; `masked`:
    the model gets the image positions as a mask, else it knows them by the id."""

    size: int
    tokens: ImageTokens
    mean: tuple[float, ...]
    std: tuple[float, ...]
    crop: bool = False
    masked: bool = False
