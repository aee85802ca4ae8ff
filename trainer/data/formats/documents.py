"""Formats that hold one document, for pre-training. Pure.

Source: the fields of WanJuan 1.0 and WanJuan-CC (OpenDataLab's cards).
"""

import re

from trainer.data.formats.images import MARK
from trainer.data.formats.values import Row, filled_text, items, shown, unread
from trainer.data.message import Conversation, Message, RowError

MARKDOWN_IMAGE = re.compile(r"!\[\]\(([^()\s]+)\)")


def read_text(row: Row) -> Conversation:
    """text, as it is."""
    return Conversation([Message("text", filled_text(row, "text", "document"))])


def read_wanjuan(row: Row) -> Conversation:
    """content, plain or Markdown, as it is. Title, date and scores are not part of the document."""
    return Conversation([Message("text", filled_text(row, "content", "document"))])


def read_wanjuan_images(row: Row) -> Conversation:
    """content with `![](address)` where an image is, img_list of {url, caption, ...}.

    The images of the list become `<image>`, in the order of the text. An address that the list does not have is no
    image of the data set and stays as it is written; one that the text does not have is not read.
    """
    raws = items(row, "img_list")
    listed = {_address(f"img_list[{index}]", image) for index, image in enumerate(raws)}
    images: list[str] = []

    def marked(found: re.Match[str]) -> str:
        if found[1] not in listed:
            return found[0]
        images.append(found[1])
        return MARK

    content = filled_text(row, "content", "document")
    document = MARKDOWN_IMAGE.sub(marked, content)
    if images and MARK in content:
        raise RowError("content", f"text that holds {MARK} itself", "images as ![](address)")
    unused = [key for image in raws for key in unread("img_list[].", image, {"url"})]
    unused += ["img_list[].url"] if listed.difference(images) else []
    return Conversation([Message("text", document)], images=tuple(images), unread=tuple(dict.fromkeys(unused)))


def _address(field: str, image: object) -> str:
    address = image.get("url") if isinstance(image, dict) else None
    if not isinstance(address, str):
        raise RowError(field, shown(image), "an object with a url")
    return address
