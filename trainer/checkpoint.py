"""Which checkpoints can be trusted: a manifest with the hash of every file is written when all ranks have saved.

DeepSpeed keeps its state in pickles; they are read only after their hashes were compared, and a checkpoint without
a manifest (killed while it was written) is never resumed.
"""

import hashlib
import json
import re
from pathlib import Path

from trainer.metrics import replace_text

MANIFEST = "manifest.json"


def seal(checkpoint: Path) -> None:
    """Write the manifest; call it when every rank has written its files."""
    files = {
        str(path.relative_to(checkpoint)): _sha256(path) for path in sorted(checkpoint.rglob("*")) if path.is_file()
    }
    files.pop(MANIFEST, None)
    replace_text(checkpoint / MANIFEST, json.dumps({"files": files}, indent=1) + "\n")


def newest_valid(output_dir: Path) -> tuple[Path | None, list[str]]:
    """The newest checkpoint whose files are as sealed, and what is wrong with each newer one."""
    problems: list[str] = []
    for checkpoint in sorted(output_dir.glob("checkpoint-*"), key=checkpoint_step, reverse=True):
        problem = damage(checkpoint)
        if problem is None:
            return checkpoint, problems
        problems.append(f"{checkpoint.name}: {problem}")
    return None, problems


def damage(checkpoint: Path) -> str | None:
    """Why a checkpoint cannot be used, or None."""
    try:
        files = json.loads((checkpoint / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError):
        return "it was not written to the end"
    for name, digest in files.items():
        if not (checkpoint / name).is_file():
            return f"{name} is missing"
        if _sha256(checkpoint / name) != digest:
            return f"{name} has changed since it was written"
    return None


def checkpoint_step(checkpoint: Path) -> int:
    """The step in a checkpoint's name; -1 for a folder that is none."""
    match = re.fullmatch(r"checkpoint-(\d+)", checkpoint.name)
    return int(match[1]) if match else -1


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
