"""A rendered conversation: pieces of text, each known to be trained or not. Pure."""

from collections.abc import Sequence
from typing import NamedTuple


class Segment(NamedTuple):
    """A piece of the rendered text. `control`: the text of one special token, never ordinary text. `content`: it came
    with the row and not from the template. `ends_turn`: after it the conversation may end. `image`: an image
    stands here; the text is its mark."""

    text: str
    trained: bool = False
    control: bool = False
    content: bool = False
    ends_turn: bool = False
    image: bool = False


def render_text(segments: Sequence[Segment]) -> str:
    """The text of a rendered conversation."""
    return "".join([segment.text for segment in segments])
