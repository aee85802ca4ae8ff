"""Where the images of a data set lie, and whether they can be used. [I/O]"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import cache
from pathlib import Path, PurePosixPath

from trainer.data.conversations import Mapped
from trainer.data.message import RowError
from trainer.errors import ConfigError
from trainer.vision.pixels import ImageFileError, check_image

AHEAD = 64  # rows whose images are looked at before their turn comes


class ImageFiles:
    """Finds the files that rows name. `folder`: data.image_dir; without it a path starts at its source's folder. Raises
    ConfigError for one that is not there."""

    def __init__(self, folder: str | None) -> None:
        if folder is not None and not Path(folder).expanduser().is_dir():
            raise ConfigError(
                f"data.image_dir: got {folder}, allowed: a folder that exists (working directory: {Path.cwd()})"
            )
        self.folder = folder
        self._taken: dict[str, str] = {}
        self._check = cache(_problem)

    def path(self, name: str) -> Path:
        """The file of a name that `find` gave."""
        return Path(self.folder or "").expanduser() / name

    def checked(self, rows: Iterable[Mapped]) -> Iterator[tuple[Mapped, RowError | None]]:
        """Rows in their order, with the names of their images as `find` gives them, or what is wrong with these. Images
        are decoded by all cores."""
        waiting: deque[Future[tuple[Mapped, RowError | None]]] = deque()
        with ThreadPoolExecutor() as pool:
            for mapped in rows:
                if not mapped.conversation.images and not waiting:
                    yield mapped, None
                    continue
                waiting.append(pool.submit(self._found, mapped))
                if len(waiting) > AHEAD:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()

    def find(self, image: str, source: str) -> str:
        """The name under which samples keep an image: relative to image_dir, or to the working directory. Leading
        folders of a row's path that image_dir does not have are left out. Raises ValueError with the reason."""
        if "://" in image or image.startswith("data:"):
            raise ValueError("an address, which nobody fetches here: name a file")
        if self.folder is None:
            return str(Path(source).parent / image)
        parts = PurePosixPath(image).parts
        while len(parts) > 1 and not (self.path(parts[0])).exists():
            parts = parts[1:]
        name = str(PurePosixPath(*parts))
        if self._taken.setdefault(name, image) != image:
            raise ValueError(f"the same file in data.image_dir as {self._taken[name]}")
        return name

    def _found(self, mapped: Mapped) -> tuple[Mapped, RowError | None]:
        names = []
        for index, image in enumerate(mapped.conversation.images):
            try:
                name = self.find(image, mapped.read.place.file)
                if problem := self._check(self.path(name)):
                    raise ValueError(f"{problem}: {self.path(name)}")
            except ValueError as error:
                return mapped, RowError(f"images[{index}]", f"{image!r}, {error}", "an image file (data.image_dir)")
            names.append(name)
        return mapped._replace(conversation=mapped.conversation._replace(images=tuple(names))), None


def _problem(path: Path) -> str:
    try:
        check_image(path)
    except ImageFileError as error:
        return str(error)
    return ""
