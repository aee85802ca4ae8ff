"""The files that hold the config of a run: as the launcher gives it to the trainer, and as the trainer leaves it."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.config.job import SCHEMA_VERSION, TrainConfig
from trainer.errors import ConfigError


def load_config(path: Path) -> TrainConfig:
    """The five sections, checked with the same models as the launcher's. Raises ConfigError."""
    return _checked(path, read_sections(path),
                    f"this trainer reads schema {SCHEMA_VERSION}; use the image of the launcher's version")  # fmt: skip


def load_run_config(path: Path) -> TrainConfig:
    """config.yaml of an output folder. There every default is written out, as if it had been asked for: what another
    field excludes is left out again, and so is the optimizer, which no trained model needs. Raises ConfigError."""
    sections = read_sections(path)
    sections.pop("optimizer", None)
    model = sections.get("model")
    if isinstance(model, dict) and model.get("path") is not None:
        model.pop("shape", None)
    return _checked(path, sections, f"this trainer reads schema {SCHEMA_VERSION}; use the one that wrote it")


def read_sections(path: Path) -> dict[str, Any]:
    """The sections as they stand there, unchecked. Raises ConfigError for a file that holds anything else."""
    import yaml

    try:
        found = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: got a {type(found).__name__}, allowed: the sections of a trainer's config")
    return found


@dataclass(frozen=True)
class Change:
    """A field that two configs train differently with: `optimizer.lr`, and its values."""

    field: str
    old: Any
    new: Any

    def __str__(self) -> str:
        return f"{self.field}: {_short(self.old)} -> {_short(self.new)}"


def changes(theirs: dict[str, Any], mine: dict[str, Any]) -> list[Change]:
    """What two runs' configs, as config.yaml has them, train differently. Another number of processes changes
    batch_size and accumulation; the rows of a step are compared on their own. A field that an older trainer did not
    know counts as it is now."""
    return [
        change for name in ("model", "data", "optimizer") for change in _changes(name, theirs.get(name, {}), mine[name])
    ]


def _changes(field: str, old: Any, new: Any) -> Iterator[Change]:
    if isinstance(old, dict) and isinstance(new, dict):
        for key in [*new, *(old.keys() - new.keys())]:
            if key not in ("batch_size", "accumulation"):
                yield from _changes(f"{field}.{key}", old.get(key, new.get(key)), new.get(key))
    elif old != new:
        yield Change(field, old, new)


def _short(value: Any, limit: int = 60) -> str:
    text = json.dumps(value, ensure_ascii=False, default=str)
    return text if len(text) <= limit else f"{text[: limit - 3]}..."




def _checked(path: Path, sections: Any, hint: str) -> TrainConfig:
    from pydantic import ValidationError

    try:
        return TrainConfig.model_validate(sections)
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, detail['loc']))}: {line}" for detail in error.errors()
                 for line in detail["msg"].splitlines()]
        raise ConfigError("\n".join(lines), hint) from error
