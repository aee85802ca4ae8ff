"""What a run has left: where its adapter is, what it was trained on, and how. [I/O]"""

from dataclasses import dataclass
from pathlib import Path

from trainer.checkpoint import MANIFEST, checkpoint_step, damage
from trainer.config import TrainConfig
from trainer.errors import ConfigError
from trainer.export.adapter import CONFIG

RUN_CONFIG = "config.yaml"
SECTIONS = ("settings", "model", "data", "runtime")  # how it was optimised does not matter any more


@dataclass(frozen=True)
class Found:
    """An output folder. `adapter`: the folder of the adapter, None when all weights were trained."""

    output: Path
    adapter: Path | None


@dataclass(frozen=True)
class Trained:
    """A result and all that it takes to use it. `job_dir`: what relative paths in `config` are relative to. `base`: a
    checkpoint folder or a name on the hub; of a run that trained all weights, its result."""

    config: TrainConfig
    adapter: Path | None
    base: str
    job_dir: Path

    @property
    def revision(self) -> str | None:
        """Of a base on the hub."""
        return self.config.model.revision if self.base == self.config.model.path else None


def find(path: Path) -> Found:
    """The result in an output folder, in its adapter/, or a checkpoint-N of it. Raises ConfigError."""
    path = path.absolute()
    if not path.is_dir():
        raise ConfigError(f"{path}: no such folder", "name a trainer's output folder, or a run: launch list")
    if checkpoint_step(path) >= 0:
        return Found(_output(path.parent), _checkpoint(path))
    if (path / CONFIG).is_file():
        return Found(_output(path.parent), path)
    output = _output(path)
    if (output / "adapter" / CONFIG).is_file():
        return Found(output, output / "adapter")
    if (output / "model" / "config.json").is_file() and any((output / "model").glob("*.safetensors")):
        return Found(output, None)
    steps = sorted(filter(lambda step: step >= 0, map(checkpoint_step, output.glob("checkpoint-*"))))
    raise ConfigError(
        f"{output}: neither adapter/ nor model/: the run is still training, or was stopped before its end",
        f"start it again, or take its newest checkpoint: {output / f'checkpoint-{steps[-1]}'}" if steps
        else "wait for its end: launch status",
    )  # fmt: skip


def read_run_config(path: Path) -> TrainConfig:
    """The config that a run has written down, in which every field is set. Raises ConfigError."""
    import yaml
    from pydantic import ValidationError

    try:
        values = dict(yaml.safe_load(path.read_text(encoding="utf-8")))
        if values["model"].get("init") is None:
            values["model"].pop("shape", None)  # which a job may not set then
        return TrainConfig.model_validate({name: values[name] for name in SECTIONS})
    except (OSError, ValueError, LookupError, TypeError, AttributeError, yaml.YAMLError) as error:
        text = error.errors()[0]["msg"] if isinstance(error, ValidationError) else error
        raise ConfigError(f"{path}: cannot be read: {text}", "use the launch that wrote it") from error


def describe(found: Found) -> Trained:
    """The result with its base. Raises ConfigError."""
    config = read_run_config(found.output / RUN_CONFIG)
    job_dir = _job_dir(found.output, config.settings.output_dir or "outputs")
    if found.adapter is None:
        if config.model.lora is not None:
            raise ConfigError(f"{found.output}: the run trains an adapter, but there is no adapter/ yet",
                              "wait for its end: launch status")  # fmt: skip
        return Trained(config, None, str(found.output / "model"), job_dir)
    if config.model.lora is None or config.model.path is None:
        raise ConfigError(f"{found.adapter}: an adapter, but {RUN_CONFIG} says that all weights were trained",
                          f"merge the run's result: {found.output}")  # fmt: skip
    if config.model.lora.init == "pissa" and checkpoint_step(found.adapter) >= 0:
        raise ConfigError(
            f"{found.adapter}: a PiSSA checkpoint belongs to a base that has lost its largest singular vectors",
            f"merge the run's result: {found.output}",
        )
    path = Path(config.model.path).expanduser()
    base = job_dir / path
    return Trained(config, found.adapter, str(base) if base.is_dir() else config.model.path, job_dir)


def _output(path: Path) -> Path:
    if not (path / RUN_CONFIG).is_file():
        raise ConfigError(f"{path}: got a folder without {RUN_CONFIG}, allowed: a trainer's output folder",
                          "it has config.yaml and, at the end, adapter/ or model/")  # fmt: skip
    return path


def _checkpoint(path: Path) -> Path:
    problem = damage(path) if (path / MANIFEST).exists() else "it was not written to the end"
    if problem is None and not (path / CONFIG).is_file():
        problem = "it has no adapter: of a run that trains all weights only the result can be written"
    if problem:
        raise ConfigError(f"{path}: {problem}", "take another checkpoint, or the run's result")
    return path


def _job_dir(output: Path, said: str) -> Path:
    """The folder that a job's relative paths mean: `output` is `said`, seen from there. A folder that was moved tells
    nothing; then it is the working directory."""
    parts = Path(said).parts
    if not Path(said).is_absolute() and output.parts[-len(parts) :] == parts:
        return Path(*output.parts[: -len(parts)])
    return Path.cwd()
