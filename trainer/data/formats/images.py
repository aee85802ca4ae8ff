"""Images of a conversation: each stands for one `<image>` in the text (XComposer's `<ImageHere>`). Pure."""

import re
from collections.abc import Iterable, Sequence

from trainer.data.formats.values import Row, filled, items, shown
from trainer.data.message import Message, RowError

MARK = "<image>"
MARKS = re.compile("<image>|<ImageHere>")
COLUMNS = ("images", "image")


def read_images(row: Row, turns: Sequence[Message], kept: Sequence[Message], parts: Sequence[str]) -> tuple[str, ...]:
    """The images of the turns that are kept. They are in the column `images` (a list) or `image` (LLaVA's: one), or
    came as `parts` of the messages. Without any of these, `<image>` is ordinary text. One image may come without mark:
    it stands in front of the conversation."""
    column = next((name for name in COLUMNS if row.get(name) is not None), None)
    if column is None and not parts:
        return ()
    if all(filled(row.get(name)) for name in COLUMNS):
        raise RowError("image", "a column beside images", "one of the two")
    if column and parts:
        raise RowError(column, "a column of images and image_url parts", "one of the two")
    images = _column(row, column) if column else tuple(parts)
    marks = count_marks(turns)
    if len(images) != marks and (len(images), marks) != (1, 0):
        raise RowError(column or "messages", f"{len(images)} images", f"{marks}, one for each {MARK} in the text")
    return images[: count_marks(kept)] if marks else images  # what is dropped comes last


def count_marks(turns: Iterable[Message]) -> int:
    """How many images the turns stand for."""
    return sum(len(MARKS.findall(turn.content)) for turn in turns)


def _column(row: Row, column: str) -> tuple[str, ...]:
    if column == "image" and isinstance(row[column], str):
        return (row[column],)
    images = items(row, column)
    for index, image in enumerate(images):
        if not isinstance(image, str):
            raise RowError(f"{column}[{index}]", shown(image), "a path or an address")
    return tuple(images)
