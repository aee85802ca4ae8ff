"""Encoded data sets, kept by the content of what they were made from.

A set's folder has a name made of all that decides its samples: the contents of the source files, the formats, the
template, the tokenizer, the settings, and this package's own code. It is written under another name and renamed when
whole, so that what exists is complete. Hashes of files are kept too, by their size and time, so that a second start
reads none of them.
"""

import hashlib
import importlib.util
import json
import shutil
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
from fsspec.core import url_to_fs

from trainer.config.job import Source, TrainConfig
from trainer.data.conversations import all_sources
from trainer.data.pipeline import Pipeline
from trainer.data.rows import Rows, plan_rows
from trainer.data.sources import source_files
from trainer.data.store import Samples, SampleWriter
from trainer.errors import ConfigError
from trainer.node.files import replace_text
from trainer.node.lock import DEAD_S, Holder, Lock, Sign
from trainer.vision.form import find_form

REJECTED = "rejected.jsonl"


class DataCache:
    """The folder of encoded data sets. `tell` hears who is waited for."""

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        self.folder, self.tell = folder, tell

    def samples(self, config: TrainConfig, tokenizer: Any) -> Samples:
        """The job's samples, encoded now unless they are there. Any number of processes and machines may ask at once;
        one works. Raises ConfigError as Pipeline does."""
        self.folder.mkdir(parents=True, exist_ok=True)
        home = self.folder / self._key(config, tokenizer)
        with one_at_a_time(home.with_suffix(".lock"), home.exists, self.tell) as is_mine:
            if is_mine and not home.exists():
                self._encode(home, config, tokenizer)
        return Samples(home)

    def rows(self, samples: Samples, config: TrainConfig) -> dict[str, Rows]:
        """Rows of the parts `train` and `validation`; the plan is kept beside the samples."""
        data = config.data
        decides = [data.pack, data.max_length, data.validation if isinstance(data.validation, float) else None,
                   [source.weight for source in data.sources], config.settings.seed]  # fmt: skip
        path = samples.folder / f"rows-{_digest(decides)}.npz"
        if not path.exists():
            part = path.with_suffix(f".{uuid.uuid4().hex}.part")
            with part.open("wb") as file:
                np.savez(file, **plan_rows(samples, data, config.settings.seed))  # type: ignore[arg-type]
            part.replace(path)
        with np.load(path) as plan:
            return {name: Rows(samples, plan[f"{name}_members"], plan[f"{name}_ends"])
                    for name in ("train", "validation")}  # fmt: skip

    def _encode(self, home: Path, config: TrainConfig, tokenizer: Any) -> None:
        for left in self.folder.glob(f"{home.name}.*.part"):  # of processes that were killed
            shutil.rmtree(left, ignore_errors=True)
        part = home.with_suffix(f".{uuid.uuid4().hex}.part")
        part.mkdir()
        try:
            with SampleWriter(part) as writer:
                report = Pipeline(config, tokenizer, part / REJECTED).run(writer)
                writer.close({"report": report.values()})
            part.rename(home)
        finally:
            shutil.rmtree(part, ignore_errors=True)

    def _key(self, config: TrainConfig, tokenizer: Any) -> str:
        data, template = config.data, config.model.chat_template
        decides = {
            "sources": [self._source(source) for source in all_sources(config)],
            "trained": len(data.sources),
            "function": _function(data.format),
            "settings": [data.format, data.max_length, data.overlong, data.bad_rows],
            "template": [template, tokenizer.chat_template if template == "tokenizer" else None],
            "tokenizer": _hash(tokenizer.backend_tokenizer.to_str().encode()),
            "ends": [tokenizer.bos_token, tokenizer.eos_token],
            "images": [data.image_dir, repr(find_form(config.model.path, tokenizer, config.model.revision))],
            "code": [_hash(path.read_bytes()) for path in sorted(Path(__file__).parent.rglob("*.py"))],
        }
        return _digest(decides)

    def _source(self, source: Source) -> dict[str, Any]:
        """All of a source but its weight, with the contents of its files and of its own function."""
        decides = source.model_dump(mode="json", exclude={"weight"})
        decides["files"] = [self._content(path) for path in source_files(source)] or _revision(source)
        decides["function"] = _function(source.format or "")
        return decides

    def _content(self, path: str) -> str:
        """A hash of the file's content, from the list of known ones if size and time are as they were. Behind an
        address: what its file system tells of the content without sending it."""
        if "://" in path:
            system, root = url_to_fs(path)
            return str(system.ukey(root))
        found = Path(path).stat()
        about = f"{Path(path).absolute()} {found.st_size} {found.st_mtime_ns}"
        memory = self.folder / "files" / f"{_hash(about.encode())}.txt"
        with suppress(OSError):
            return memory.read_text(encoding="utf-8")
        with Path(path).open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        memory.parent.mkdir(exist_ok=True)
        replace_text(memory, content)
        return content


@contextmanager
def one_at_a_time(
    path: Path, done: Callable[[], bool], tell: Callable[[str], None], dead_s: float = DEAD_S
) -> Iterator[bool]:
    """Within it this process holds the lock at `path`, unless nothing was left to do, `done()`, while it waited: it is
    given whether it does. `tell` hears who is waited for."""
    lock, told = Lock(path, Holder.me(), dead_s), None
    for holder, sign in () if done() else lock.acquire():
        if done():
            break
        gone = sign is Sign.DEAD
        if told != (holder, gone):
            told = (holder, gone)
            tell(
                f"data: {holder} is gone; its work is done again"
                if gone
                else f"data: waiting for {holder}, which is encoding this data set"
            )
    try:
        yield lock.is_held
    finally:
        lock.release()


def _function(name: str) -> str:
    """A hash of the code of `module:function`, nothing for a format of ours. Raises ConfigError."""
    module, colon, _ = name.partition(":")
    if not colon:
        return ""
    try:
        found = importlib.util.find_spec(module)
    except ImportError:
        found = None
    if found is None or found.origin is None:
        raise ConfigError(
            f"data.format: got {name}, but there is no module {module}",
            "ship it with the job (code: .), and name it as Python would import it",
        )
    return _hash(Path(found.origin).read_bytes())


def _revision(source: Source) -> str:
    """Which state of a data set on the hub would be read; unknown, it is never taken for another."""
    import datasets

    try:
        return str(datasets.load_dataset_builder(source.path).hash)
    except Exception:  # datasets raises many kinds; reading the rows will tell the user
        return uuid.uuid4().hex


def _digest(value: Any) -> str:
    return _hash(json.dumps(value, sort_keys=True, ensure_ascii=False).encode())[:20]


def _hash(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
