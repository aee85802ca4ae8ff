"""The files that hold the config of a run: as the launcher gives it to the trainer, and as the trainer leaves it."""

from pathlib import Path
from typing import Any

from trainer.config import SCHEMA_VERSION, TrainConfig
from trainer.errors import ConfigError


def load_config(path: Path) -> TrainConfig:
    """The five sections, checked with the same models as the launcher's. Raises ConfigError."""
    return _checked(path, _read(path), f"this trainer reads schema {SCHEMA_VERSION}; use the image of the launcher's "
                    "version")  # fmt: skip


def load_run_config(path: Path) -> TrainConfig:
    """config.yaml of an output folder. There every default is written out, as if it had been asked for: what another
    field excludes is left out again, and so is the optimizer, which no trained model needs. Raises ConfigError."""
    sections = _read(path)
    if isinstance(sections, dict):
        sections.pop("optimizer", None)
        model = sections.get("model")
        if isinstance(model, dict) and model.get("path") is not None:
            model.pop("shape", None)
    return _checked(path, sections, f"this trainer reads schema {SCHEMA_VERSION}; use the one that wrote it")


def changed_sections(theirs: dict[str, Any], mine: dict[str, Any]) -> list[str]:
    """Which sections of two runs' configs, as config.yaml has them, train something else. Another number of processes
    changes batch_size and accumulation; the rows of a step are compared on their own. A field that an older trainer did
    not know counts as it is now."""
    return [name for name in ("model", "data", "optimizer") if _differ(theirs.get(name, {}), mine[name])]


def _differ(theirs: dict[str, Any], mine: dict[str, Any]) -> bool:
    for key in (theirs.keys() | mine.keys()) - {"batch_size", "accumulation"}:
        old, new = theirs.get(key, mine.get(key)), mine.get(key)
        if _differ(old, new) if isinstance(old, dict) and isinstance(new, dict) else old != new:
            return True
    return False


def _read(path: Path) -> Any:
    import yaml

    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error


def _checked(path: Path, sections: Any, hint: str) -> TrainConfig:
    from pydantic import ValidationError

    try:
        return TrainConfig.model_validate(sections)
    except ValidationError as error:
        lines = [f"{path}: {'.'.join(map(str, detail['loc']))}: {detail['msg']}" for detail in error.errors()]
        raise ConfigError("\n".join(lines), hint) from error
