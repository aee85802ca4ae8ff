"""An article with pictures: the model writes it, says where images belong and what they should show, and chooses them
from a folder of the user's own; the result is one file. (The steps are those of InternLM-XComposer's composition,
arXiv:2309.15112; the questions are ours.) [I/O]"""

import base64
import html
import mimetypes
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from trainer.data.formats.images import MARK, MARKS
from trainer.data.message import Message
from trainer.errors import ConfigError, TrainError
from trainer.node.files import replace_text
from trainer.vision.pixels import ImageFileError, check_image

Ask = Callable[[Sequence[Message], Sequence[Path]], str]
Tell = Callable[[str], None]

KINDS = (".jpg", ".jpeg", ".png", ".webp", ".gif")  # what browsers show
MAX_PICTURES = 60  # that are described: one question each
DESCRIBE = f"{MARK}Describe this image in one sentence."
PLACES = (
    "This is an article with numbered paragraphs:\n\n{article}\n\nChoose at most {number} paragraphs that an image "
    "should follow. Answer with one line for each: the paragraph's number, a colon, and a caption that says what the "
    "image shows."
)
CHOOSE = "Which of these images fits the caption {caption!r} best?\n\n{images}\n\nAnswer with its number only."


@dataclass(frozen=True)
class Place:
    """Where an image stands: behind the paragraph of this number, counted from 0."""

    paragraph: int
    caption: str


@dataclass(frozen=True)
class Article:
    """`pictures`: paragraph -> picture and caption."""

    paragraphs: list[str]
    pictures: dict[int, tuple[Path, str]]


def compose(ask: Ask, instruction: str, pictures: Sequence[Path], to: Path, tell: Tell, number: int = 4) -> Article:
    """Write the article that `instruction` asks for, with at most `number` of the pictures, to a file .md or .html.
    `ask` answers a conversation with images. Markdown links to the pictures, HTML holds them. Raises ConfigError for a
    file that cannot be written, TrainError when the model writes nothing."""
    paragraphs = _paragraphs(ask([Message("user", MARKS.sub("", instruction))], []))
    if not paragraphs:
        raise TrainError("the model wrote nothing", "ask for the article in other words")
    tell(f"* article: {len(paragraphs)} paragraphs")
    places = find_places(ask, paragraphs, min(number, len(pictures)), tell)
    article = Article(paragraphs, _chosen(ask, places, pictures, tell))
    text = markdown_text(article, to.parent) if to.suffix == ".md" else html_text(article, instruction)
    try:
        replace_text(to, text)
    except OSError as error:
        raise ConfigError(f"--to: {to} cannot be written: {error.strerror}", "choose a folder that exists") from error
    return article


def find_pictures(folder: Path, tell: Tell) -> list[Path]:
    """The images in a folder, by name; what cannot be decoded is told and left out. Raises ConfigError."""
    found = sorted(path for path in folder.glob("*") if path.suffix.lower() in KINDS) if folder.is_dir() else []
    usable = [path for path in found[:MAX_PICTURES] if _is_usable(path, tell)]
    if len(found) > MAX_PICTURES:
        tell(f"* {len(found)} images, of which the first {MAX_PICTURES} are looked at")
    if not usable:
        raise ConfigError(f"--images: got {folder}, allowed: a folder with images ({', '.join(KINDS)})")
    return usable


def check_target(to: Path) -> None:
    """Raise ConfigError for a file that an article cannot be written to."""
    if to.suffix not in (".md", ".html"):
        raise ConfigError(f"--to: got {to}, allowed: a file .md or .html")
    if not to.parent.is_dir():
        raise ConfigError(f"--to: got {to}, allowed: a file in a folder that exists", f"mkdir -p {to.parent}")


def find_places(ask: Ask, paragraphs: Sequence[str], number: int, tell: Tell) -> list[Place]:
    """Where the model wants images; where its answer names no paragraph, behind some at equal distances, with the
    paragraph's first words as the caption."""
    article = "\n\n".join(f"[{index + 1}] {text}" for index, text in enumerate(paragraphs))
    answer = ask([Message("user", MARKS.sub("", PLACES.format(article=article, number=number)))], [])
    named: dict[int, str] = {}
    for line in answer.splitlines():
        match = re.match(r"\W*(?:paragraph\s*)?(\d+)\W+(\w.*)", line, re.IGNORECASE)
        if match and 1 <= int(match[1]) <= len(paragraphs):
            named.setdefault(int(match[1]) - 1, match[2].strip())
    if named:
        return [Place(index, caption) for index, caption in list(named.items())[:number]]
    tell("* the model names no paragraph for an image: they are spread evenly")
    step = max(1, len(paragraphs) // number)
    return [Place(index, _first_words(paragraphs[index])) for index in range(0, len(paragraphs), step)][:number]


def markdown_text(article: Article, home: Path) -> str:
    """The article for a file in the folder `home`, with relative links to the pictures."""
    blocks = []
    for index, paragraph in enumerate(article.paragraphs):
        blocks.append(paragraph)
        if index in article.pictures:
            path, caption = article.pictures[index]
            link = quote(Path(os.path.relpath(path.resolve(), home.resolve())).as_posix())
            escaped = re.sub(r"([\\\[\]`*_<])", r"\\\1", caption)
            blocks.append(f"![{escaped}]({link})")
    return "\n\n".join(blocks) + "\n"


def html_text(article: Article, title: str) -> str:
    """The article as a page of its own, pictures inside. The model's text is Markdown, of which no HTML and no image
    gets into the page."""
    from markdown_it import MarkdownIt

    renderer = MarkdownIt("commonmark", {"html": False}).disable("image")
    parts = []
    for index, paragraph in enumerate(article.paragraphs):
        parts.append(renderer.render(paragraph))
        if index in article.pictures:
            parts.append(_figure(*article.pictures[index]))
    head = f'<meta charset="utf-8">\n<title>{html.escape(title)}</title>\n<style>{STYLE}</style>'
    return f"<!doctype html>\n<html>\n<head>\n{head}\n</head>\n<body>\n{''.join(parts)}</body>\n</html>\n"


STYLE = "body { max-width: 42em; margin: 2em auto; padding: 0 1em; font-family: sans-serif } img { max-width: 100% }"


def _chosen(ask: Ask, places: Sequence[Place], pictures: Sequence[Path], tell: Tell) -> dict[int, tuple[Path, str]]:
    """A picture for each place, none of them twice."""
    about = {path: " ".join(ask([Message("user", DESCRIBE)], [path]).split()) for path in pictures}
    chosen: dict[int, tuple[Path, str]] = {}
    for place in places:
        left = [path for path in pictures if path not in {taken for taken, _ in chosen.values()}]
        path = _best(ask, place.caption, {path: about[path] for path in left})
        chosen[place.paragraph] = (path, place.caption)
        tell(f"* image: {path.name} behind paragraph {place.paragraph + 1}: {place.caption}")
    return chosen


def _best(ask: Ask, caption: str, about: dict[Path, str]) -> Path:
    """The picture that the model names; where it names none, the one whose description has most words in common."""
    paths = list(about)
    listed = "\n".join(f"{index + 1}. {text}" for index, text in enumerate(about.values()))
    answer = ask([Message("user", MARKS.sub("", CHOOSE.format(caption=caption, images=listed)))], [])
    number = re.search(r"\d+", answer)
    if number and 1 <= int(number[0]) <= len(paths):
        return paths[int(number[0]) - 1]
    wanted = _words(caption)
    return max(paths, key=lambda path: len(wanted & _words(about[path])))


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.lower()))


def _paragraphs(text: str) -> list[str]:
    """Blocks between blank lines; a fenced block of code is one."""
    blocks: list[str] = []
    fenced = False
    for block in re.split(r"\n\s*\n", text.strip()):
        blocks, last = (blocks[:-1], [blocks[-1]]) if fenced else (blocks, [])
        blocks.append("\n\n".join([*last, block.rstrip()]))
        fenced ^= len(re.findall(r"^\s*```", block, re.MULTILINE)) % 2 == 1
    return [block for block in blocks if block]


def _first_words(paragraph: str) -> str:
    return " ".join(re.sub(r"[#*`>]", "", paragraph).split()[:12])


def _figure(path: Path, caption: str) -> str:
    kind = mimetypes.guess_type(path.name)[0] or "image/jpeg"
    data = base64.b64encode(path.read_bytes()).decode()
    escaped = html.escape(caption)
    image = f'<img src="data:{kind};base64,{data}" alt="{escaped}">'
    return f"<figure>\n{image}\n<figcaption>{escaped}</figcaption>\n</figure>\n"


def _is_usable(path: Path, tell: Tell) -> bool:
    try:
        check_image(path)
    except ImageFileError as error:
        tell(f"* left out: {path.name}: {error}")
        return False
    return True
