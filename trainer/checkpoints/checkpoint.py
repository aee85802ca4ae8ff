"""Which checkpoints can be trusted, and how they come to be: written under a temporary name, sealed when all ranks have
saved, and only then given their own name.

The seal is a manifest with the size and hash of every file. DeepSpeed keeps its state in pickles; they are read only
after their hashes were compared.
"""

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any, NamedTuple

from trainer.errors import ConfigError
from trainer.node.files import replace_text

MANIFEST = "manifest.json"
STATE = "trainer_state.json"  # transformers' own
PART = ".saving"  # in the output folder, so that a rename moves a checkpoint out of it


def part_folder(output_dir: Path) -> Path:
    """Where checkpoints are written before they count."""
    return output_dir / PART


def remove_parts(output_dir: Path) -> None:
    """Remove what a killed save has left, and checkpoints that were moved there."""
    shutil.rmtree(part_folder(output_dir), ignore_errors=True)


class Writers(NamedTuple):
    """Who writes a checkpoint: how many processes, and how many rows they train on in one step, all together.
    `split`: each keeps a part of the optimizer's state (ZeRO-3), which only as many can read back."""

    processes: int
    rows_per_step: int
    split: bool


def publish(output_dir: Path, step: int, writers: Writers, keep: int) -> None:
    """Seal the checkpoint that all ranks have written, give it its name, and remove older ones beyond `keep`. Raises
    OSError, also where a folder of that name is not ours."""
    checkpoint = output_dir / f"checkpoint-{step}"
    part = part_folder(output_dir) / checkpoint.name
    seal(part, writers)
    if is_sealed(checkpoint):  # of this step, but damaged: it was passed over when we resumed
        _discard(checkpoint)
    part.rename(checkpoint)
    _rotate(output_dir, step, keep)
    remove_parts(output_dir)


def seal(checkpoint: Path, writers: Writers) -> None:
    """Write the manifest; call it when every rank has written its files."""
    files = {
        str(path.relative_to(checkpoint)): {"bytes": path.stat().st_size, "sha256": _sha256(path, sync=True)}
        for path in sorted(checkpoint.rglob("*"))
        if path.is_file() and path.name != MANIFEST
    }
    replace_text(checkpoint / MANIFEST, json.dumps({**writers._asdict(), "files": files}, indent=1) + "\n")


def is_sealed(checkpoint: Path) -> bool:
    """Whether a trainer of ours has written it; one without the seal is somebody else's, and is never touched."""
    return (checkpoint / MANIFEST).is_file()


def newest_valid(output_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are as sealed, and what is wrong with each newer one."""
    problems: list[str] = []
    for checkpoint in _by_age(output_dir):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint, problems
        problems.append(f"{checkpoint.name}: {problem}")
    return None, problems


def damage(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used, or None: all sizes first, then the hashes, which take as long as reading it."""
    files = _manifest(checkpoint).get("files")
    if files is None:
        return "it was not written to the end"
    for name, sealed in files.items():
        path = checkpoint / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != sealed["bytes"]:
            return f"{name} has {path.stat().st_size} bytes, written were {sealed['bytes']}"
    changed = (name for name, sealed in files.items() if _sha256(checkpoint / name) != sealed["sha256"])
    return next((f"{name} has changed since it was written" for name in changed), None)


def planned_steps(checkpoint: Path) -> int:
    """How many steps the run was to have that wrote it."""
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    return int(state["max_steps"])


def check_writers(checkpoint: Path, writers: Writers) -> None:
    """Raises ConfigError when these cannot go on from the checkpoint: another number of processes has only parts of its
    state, and steps of other sizes would train on rows twice or never."""
    found = _manifest(checkpoint)
    wrote, rows = found["processes"], found["rows_per_step"]
    if wrote != writers.processes and (found["split"] or writers.split):
        raise ConfigError(
            f"resources: got {writers.processes} processes, but {checkpoint} was written by {wrote}",
            f"run it with {wrote} process(es) (only a zero_stage up to 2, with an optimizer of ours, goes on with any "
            "number), or choose another settings.output_dir",
        )
    if rows != writers.rows_per_step:
        raise ConfigError(
            f"optimizer: got {writers.rows_per_step} rows a step (batch_size x accumulation x processes), but "
            f"{checkpoint} was written with {rows}",
            "change batch_size or accumulation so that a step has as many, or choose another settings.output_dir",
        )


def checkpoint_step(checkpoint: Path) -> int:
    """The step in a checkpoint's name; -1 for a folder that is none."""
    match = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(match[1]) if match else -1


def _by_age(output_dir: Path) -> list[Path]:
    named = (path for path in output_dir.glob("checkpoint-*") if checkpoint_step(path) >= 0)
    return sorted(named, key=checkpoint_step, reverse=True)


def _rotate(output_dir: Path, step: int, keep: int) -> None:
    """Keep the one just written and the newest older ones; one with a higher step was passed over when we resumed."""
    ours = [checkpoint for checkpoint in _by_age(output_dir) if is_sealed(checkpoint)]
    older = [checkpoint for checkpoint in ours if checkpoint_step(checkpoint) < step]
    newer = [checkpoint for checkpoint in ours if checkpoint_step(checkpoint) > step]
    for checkpoint in [*newer, *older[keep - 1 :]]:
        _discard(checkpoint)


def _discard(checkpoint: Path) -> None:
    """Among the parts, which are removed: half a checkpoint never counts."""
    checkpoint.rename(part_folder(checkpoint.parent) / f"old-{checkpoint.name}")


def _manifest(checkpoint: Path) -> dict[str, Any]:
    try:
        return dict(json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def _sha256(path: Path, *, sync: bool = False) -> str:
    """`sync`: onto the disk, before older checkpoints are removed."""
    with path.open("rb") as file:
        if sync:
            os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()
