"""Images among the text of a conversation. Pure."""

from collections.abc import Sequence

from trainer.data.formats.images import MARKS
from trainer.data.message import RowError
from trainer.data.segment import Segment


def place_images(segments: Sequence[Segment], images: int) -> list[Segment]:
    """The segments with a segment of its own for each image, in place of its mark in the content; one image without
    any mark stands in front of the whole prompt (as XComposer2's makers do it). Raises RowError when there are more
    marks than images, or fewer."""
    if not images:
        return list(segments)
    placed: list[Segment] = []
    count = 0
    for segment in segments:
        if not segment.content or not MARKS.search(segment.text):
            placed.append(segment)
            continue
        texts, marks = MARKS.split(segment.text), MARKS.findall(segment.text)
        count += len(marks)
        for text, mark in zip(texts, [*marks, ""], strict=True):
            placed += [segment._replace(text=text, ends_turn=False)] if text else []
            placed += [Segment(mark, content=True, image=True)] if mark else []
        placed[-1] = placed[-1]._replace(ends_turn=segment.ends_turn)
    if images == 1 and not count:
        return [Segment("", content=True, image=True), *placed]
    if count != images:
        raise RowError("images", f"{images} images", f"{count}, one for each <image> in the text")
    return placed
