"""Encoded samples in files that are mapped into memory: as many as the disk holds, and a start without reading them.

tokens.bin holds all samples one after the other, int32: a trained token is its id, any other the id's bitwise
complement (negative, as in InternEvo's format), so that labels cost nothing. lengths.npy: tokens per sample, int32.
places.npy: (source, file, line) of each sample. images.npy, where there are any: (sample, start, name) of each image,
start being the first of its tokens in the sample. about.json: files, image names, report. Of an image its name is kept,
never its pixels.
"""

import json
from array import array
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from trainer.data.encode import IGNORED, Encoded
from trainer.data.sources import Place

Tokens = npt.NDArray[np.int32]
FLUSH = 1 << 18  # tokens kept in memory before they are written


def ids_of(tokens: Tokens) -> Tokens:
    """The ids in stored tokens, of any shape."""
    return np.where(tokens < 0, ~tokens, tokens)


def labels_of(tokens: Tokens) -> Tokens:
    """The ids of trained tokens, -100 for others."""
    return np.where(tokens < 0, IGNORED, tokens)


class SampleWriter:
    """Writes samples into an existing, empty folder; `close` makes it complete."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file = (folder / "tokens.bin").open("wb")
        self._ids: list[int] = []
        self._spans: list[tuple[int, int]] = []  # in _ids
        self._lengths = array("i")
        self._places = array("q")
        self._files: dict[str, int] = {}
        self._images = array("q")
        self._names: dict[str, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._file.close()

    def add(self, source: int, place: Place, sample: Encoded, images: Sequence[str] = ()) -> None:
        """One more sample. `images`: the names of all images of its conversation."""
        for first, _, number in sample.images:
            name = self._names.setdefault(images[number], len(self._names))
            self._images.extend((len(self._lengths), first, name))
        begun = len(self._ids)
        self._ids += sample.ids
        self._spans += [(begun + start, begun + end) for start, end in sample.spans]
        self._lengths.append(len(sample.ids))
        self._places.extend((source, self._files.setdefault(place.file, len(self._files)), place.line))
        if len(self._ids) >= FLUSH:
            self._flush()

    def close(self, about: dict[str, Any]) -> None:
        """Write what is left; about.json comes last."""
        self._flush()
        self._file.close()
        np.save(self.folder / "lengths.npy", np.array(self._lengths, dtype=np.int32))
        np.save(self.folder / "places.npy", np.array(self._places, dtype=np.int64).reshape(-1, 3))
        if self._images:
            np.save(self.folder / "images.npy", np.array(self._images, dtype=np.int64).reshape(-1, 3))
        text = json.dumps({"files": list(self._files), "images": list(self._names), **about}, ensure_ascii=False)
        (self.folder / "about.json").write_text(text, encoding="utf-8")

    def _flush(self) -> None:
        tokens = ~np.array(self._ids, dtype=np.int32)
        for start, end in self._spans:
            np.invert(tokens[start:end], out=tokens[start:end])
        tokens.tofile(self._file)
        self._ids, self._spans = [], []


class Samples(Sequence[Tokens]):
    """The samples of a complete folder; each is a read-only view of its tokens, int32 [T]."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.about = json.loads((folder / "about.json").read_text(encoding="utf-8"))
        self.lengths: npt.NDArray[np.int32] = np.load(folder / "lengths.npy")
        self.ends = np.cumsum(self.lengths, dtype=np.int64)
        self.places: npt.NDArray[np.int64] = np.load(folder / "places.npy", mmap_mode="r")
        images = folder / "images.npy"
        self._images: npt.NDArray[np.int64] = np.load(images) if images.exists() else np.empty((0, 3), np.int64)
        total = int(self.ends[-1]) if len(self.ends) else 0
        self.tokens: Tokens = (
            np.memmap(folder / "tokens.bin", dtype=np.int32, mode="r", shape=(total,))
            if total
            else np.empty(0, np.int32)
        )

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: Any) -> Any:
        end = int(self.ends[index])
        return self.tokens[end - int(self.lengths[index]) : end]

    def images(self, index: int) -> list[tuple[int, str]]:
        """Where its images start among its tokens, and their names."""
        first, last = np.searchsorted(self._images[:, 0], [index, index + 1])
        return [(start, self.about["images"][name]) for _, start, name in self._images[first:last].tolist()]

    def place(self, index: int) -> str:
        """Where it was read, as `file:line`."""
        _, file, line = self.places[index].tolist()
        return f"{self.about['files'][file]}:{line}"
