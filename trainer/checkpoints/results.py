"""What a run has left in its output folder, and all that it takes to use it. [I/O]"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trainer.checkpoints.checkpoint import checkpoint_step, damage, newest_valid
from trainer.config.file import load_run_config
from trainer.config.job import TrainConfig
from trainer.errors import ConfigError
from trainer.models.hub import may_be_on_hub

CONFIG = "config.yaml"
ADAPTER = "adapter_config.json"
MODEL = "config.json"


@dataclass(frozen=True)
class Found:
    """A part of an output folder, and the run's config. `part`: adapter/, model/ or a checkpoint-N."""

    output: Path
    config: TrainConfig
    part: Path

    @property
    def is_adapter(self) -> bool:
        """Whether the part is an adapter, not a whole model."""
        return self.config.model.lora is not None

    @property
    def is_checkpoint(self) -> bool:
        """Whether training went on from there, or could."""
        return checkpoint_step(self.part) >= 0


@dataclass(frozen=True)
class Trained:
    """A result and what it is used with. `adapter`: its folder, None when all weights were trained. `base`: a folder or
    a name on the hub; of a run that trained all weights, the trained model. `tokenizer`: where that is. `job_dir`: what
    relative paths in `config` are relative to."""

    config: TrainConfig
    adapter: Path | None
    base: str
    tokenizer: str
    job_dir: Path

    @property
    def revision(self) -> str | None:
        """Of a base on the hub."""
        return self.config.model.revision if self.base == self.config.model.path else None


def output_folder(path: Path) -> Path:
    """The output folder that `path` would be, or be a part of; absolute."""
    path = path.absolute()
    is_model = path.name == "model" and (path / MODEL).is_file()  # another may be a merged one that lies there, too
    return path.parent if is_model or (path / ADAPTER).is_file() or checkpoint_step(path) >= 0 else path


def is_run(output: Path) -> bool:
    """Whether a trainer has written its config there."""
    path = output / CONFIG
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return {"settings:", "model:", "data:"} <= set(lines)


def result_name(config: TrainConfig) -> str:
    """The folder in the output folder that a run writes at its end."""
    return "model" if config.model.lora is None else "adapter"


def has_result(output: Path, config: TrainConfig) -> bool:
    """Whether a run has written it."""
    folder, written = output / result_name(config), MODEL if config.model.lora is None else ADAPTER
    return (folder / written).is_file() and any(folder.glob("*.safetensors"))


def find_result(path: Path, *, unfinished: bool = False) -> Found:
    """The part that `path` is, or the result in an output folder; without one and `unfinished`, its newest checkpoint
    that is whole. Raises ConfigError."""
    path, output = path.absolute(), output_folder(path)
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder", "name a trainer's output folder, or a run: launch list")
    if not (output / CONFIG).is_file():
        raise ConfigError(f"{output}: got a folder without {CONFIG}, allowed: a trainer's output folder",
                          "it has config.yaml and, at the end, adapter/ or model/")  # fmt: skip
    config = load_run_config(output / CONFIG)
    if path == output:
        return Found(output, config, _result(output, config, unfinished))
    problem = damage(path) if checkpoint_step(path) >= 0 else None
    if problem:
        raise ConfigError(f"{path}: {problem}", "take another checkpoint, or the run's result")
    trains_adapter = config.model.lora is not None
    if (path / ADAPTER).is_file() != trains_adapter:
        has, trained = ("a model", "an adapter was") if trains_adapter else ("an adapter", "all weights were")
        raise ConfigError(f"{path}: {has}, but {CONFIG} says that {trained} trained", f"take the run: {output}")
    return Found(output, config, path)


def describe(found: Found, job_dir: Path | None = None) -> Trained:
    """The result with its base. `job_dir`: what relative paths in the config mean, where that is known. Raises
    ConfigError."""
    places = _places(found, job_dir)
    if found.config.model.path is None or not (found.is_adapter or found.is_checkpoint):
        return Trained(found.config, None, str(found.part), str(found.output / "model"), places[0])
    base, place = _base(found, found.config.model.path, places)
    adapter, model = (found.part, base) if found.is_adapter else (None, str(found.part))
    return Trained(found.config, adapter, model, base, place)


def read_adapter(folder: Path) -> dict[str, Any]:
    """adapter_config.json of a LoRA. Raises ConfigError."""
    try:
        found = json.loads((folder / ADAPTER).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{folder}: no adapter: {ADAPTER} cannot be read: {error}") from error
    fields = found if isinstance(found, dict) else {}
    if fields.get("peft_type") != "LORA":
        raise ConfigError(f"{folder}: got peft_type {fields.get('peft_type')} in {ADAPTER}, allowed: LORA")
    missing = {"r", "lora_alpha"} - fields.keys()
    if missing:
        raise ConfigError(f"{folder}: {ADAPTER} says no {' and no '.join(sorted(missing))}")
    return fields


def _result(output: Path, config: TrainConfig, unfinished: bool) -> Path:
    name = result_name(config)
    if has_result(output, config):
        return output / name
    if unfinished:
        checkpoint, problems = newest_valid(output)
        if checkpoint is not None:
            return checkpoint
        raise ConfigError(f"{output}: got neither {name}/ nor a checkpoint{''.join(f'; {one}' for one in problems)}",
                          "wait until the run has saved one (runtime.save_every): launch logs -f")  # fmt: skip
    steps = sorted(filter(lambda step: step >= 0, map(checkpoint_step, output.glob("checkpoint-*"))))
    raise ConfigError(
        f"{output}: neither adapter/ nor model/: the run is still training, or was stopped before its end",
        f"start it again, or take its newest checkpoint: {output / f'checkpoint-{steps[-1]}'}" if steps
        else "wait for its end: launch status",
    )  # fmt: skip


def _places(found: Found, job_dir: Path | None) -> list[Path]:
    """What relative paths may be relative to, the likeliest first. The config says where the output folder is, seen
    from there; of one that was moved that tells nothing."""
    known = [job_dir] if job_dir is not None and job_dir.is_dir() else []
    said = Path(found.config.settings.output_dir or "outputs")
    if not said.is_absolute() and found.output.parts[-len(said.parts) :] == said.parts:
        return [*known, Path(*found.output.parts[: -len(said.parts)]), Path.cwd()]
    return [*known, Path.cwd(), found.output.parent]


def _base(found: Found, path: str, places: list[Path]) -> tuple[str, Path]:
    """The base as it can be opened from here, a folder or a name on the hub, and the place that it was found from."""
    for place in places:
        if (place / Path(path).expanduser()).is_dir():
            return str(place / Path(path).expanduser()), place
    if may_be_on_hub(path):
        return path, places[0]
    looked = " or ".join(dict.fromkeys(map(str, places)))
    raise ConfigError(
        f"{found.output / CONFIG}: model.path: got {path}, which is not there (looked in {looked})",
        f"put it there, or name the base in a chat: launch chat BASE --adapter {found.part}",
    )
