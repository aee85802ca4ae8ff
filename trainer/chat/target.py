"""What a user talks with: a model folder, a name on the hub, or what a run has trained. [I/O]"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from trainer.checkpoint import newest_valid
from trainer.config import Model, Sampling, TrainConfig
from trainer.config_file import load_run_config
from trainer.errors import ConfigError

ADAPTER = "adapter_config.json"
CONFIG = "config.yaml"


@dataclass(frozen=True)
class Target:
    """`path`: of the base, or of a model trained whole; `tokenizer`: its folder or name. `template`: None when the
    tokenizer has to show it; `source`: where it was found. `system`: what the data of the run began with. `section`:
    how the run held its model."""

    path: str
    tokenizer: str
    adapter: Path | None = None
    template: str | None = None
    source: str = ""
    quantization: str = "none"
    dtype: str = "bf16"
    system: str = ""
    sampling: Sampling = field(default_factory=Sampling)
    on_cpu: bool = False
    section: Model | None = None

    @property
    def model(self) -> Model:
        """The section that the loader reads: the run's own, where there is a run."""
        chosen = {"path": self.path, "init": None, "quantization": self.quantization, "dtype": self.dtype}
        chosen["revision"] = self.revision_of(self.path)
        return (self.section or Model(path=self.path)).model_copy(update=chosen)

    def revision_of(self, path: str) -> str | None:
        """The run's, for the name on the hub that its section names; what it has trained is a folder."""
        return self.section.revision if self.section and self.section.path == path else None


def find_target(path: str, adapter: Path | None, job_dir: Path | None) -> Target:
    """`path`: folder or hub name; `adapter`: another one than the run's; `job_dir`: what relative paths in a run's
    config mean, when that is known. Raises ConfigError."""
    folder = Path(path).expanduser()
    target = _of_folder(folder, job_dir) or Target(path, path)
    return target if adapter is None else _with_adapter(target, adapter.expanduser())


def _of_folder(folder: Path, job_dir: Path | None) -> Target | None:
    if is_run(folder):
        return _of_run(folder, None, job_dir)
    if (folder / ADAPTER).is_file():
        if is_run(folder.absolute().parent):
            return _of_run(folder.absolute().parent, folder, job_dir)
        return Target(_base_name(folder), _base_name(folder), folder)
    if (folder / "config.json").is_file() and is_run(folder.absolute().parent):
        return _of_run(folder.absolute().parent, folder, job_dir)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise ConfigError(
            f"model: got {folder}, allowed: the folder of a checkpoint (config.json), of an adapter ({ADAPTER}), or "
            f"the output folder of a run ({CONFIG})"
        )
    return None


def is_run(folder: Path) -> bool:
    """Whether a trainer has written its config there."""
    path = folder / CONFIG
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
    return {"settings:", "model:", "data:"} <= set(lines)


def _of_run(folder: Path, part: Path | None, job_dir: Path | None) -> Target:
    """`part`: the adapter or model in it that is meant."""
    config = load_run_config(folder / CONFIG)
    starts = [job_dir] if job_dir else [_job_dir(folder, config), Path.cwd()]
    base = None if config.model.path is None else _found(config.model.path, starts, folder)
    adapter, path = None, str(base)
    if config.model.lora is not None:
        adapter = part or _result(folder, "adapter", ADAPTER)
    else:
        path = str(part or _result(folder, "model", "config.json"))
    return Target(
        path,
        base or str(folder / "model"),
        adapter,
        config.model.chat_template,
        str(folder / CONFIG),
        config.model.quantization,
        config.model.dtype,
        _system(config),
        config.runtime.sampling,
        config.settings.device == "cpu",
        config.model,
    )


def _result(folder: Path, name: str, config: str) -> Path:
    """The folder of that name when it is complete, else the newest valid checkpoint. Raises ConfigError."""
    result = folder / name
    if (result / config).is_file() and any(result.glob("*.safetensors")):
        return result
    checkpoint, problems = newest_valid(folder)
    if checkpoint is not None:
        return checkpoint
    raise ConfigError(
        f"{folder}: got neither {name}/ nor a checkpoint{''.join(f'; {problem}' for problem in problems)}",
        "wait until the run has saved one (runtime.save_every): launch logs -f",
    )


def _job_dir(folder: Path, config: TrainConfig) -> Path:
    """The folder that output_dir is relative to; an absolute one does not tell."""
    said, whole = Path(config.settings.output_dir or "outputs"), folder.absolute()
    is_below = not said.is_absolute() and whole.parts[-len(said.parts) :] == said.parts
    return whole.parents[len(said.parts) - 1] if is_below else whole.parent


def _found(path: str, starts: Sequence[Path], folder: Path) -> str:
    """A model path of a config as one that can be opened from here: a folder, or a name on the hub."""
    for start in starts:
        if (start / Path(path).expanduser()).is_dir():
            return str(start / Path(path).expanduser())
    if not path.startswith((".", "/", "~")) and path.count("/") <= 1:
        return path
    looked = " or ".join(dict.fromkeys(str(start) for start in starts))
    raise ConfigError(
        f"{folder / CONFIG}: model.path: got {path}, which is not there (looked in {looked})",
        f"name the base: launch chat BASE --adapter {folder / 'adapter'}",
    )


def _system(config: TrainConfig) -> str:
    """The system message that all sources give to their conversations, if it is one."""
    texts = {source.system for source in config.data.sources}
    return (texts.pop() or "") if len(texts) == 1 else ""


def _base_name(adapter: Path) -> str:
    from trainer.chat.adapter import read_adapter

    base = read_adapter(adapter).get("base_model_name_or_path")
    if not base:
        raise ConfigError(f"{adapter / ADAPTER}: names no base", f"launch chat BASE --adapter {adapter}")
    return str(base)


def _with_adapter(target: Target, adapter: Path) -> Target:
    """The template is that of the run that has trained the adapter, where that is known."""
    folder = adapter if (adapter / ADAPTER).is_file() else adapter / "adapter"
    if not (folder / ADAPTER).is_file():
        raise ConfigError(f"--adapter: got {adapter}, allowed: a folder with {ADAPTER}")
    changes: dict[str, Any] = {"adapter": folder}
    if is_run(folder.absolute().parent):
        config = load_run_config(folder.absolute().parent / CONFIG)
        source = str(folder.absolute().parent / CONFIG)
        changes |= {"template": config.model.chat_template, "source": source, "system": _system(config)}
        changes |= {"sampling": config.runtime.sampling}
    return Target(**{**target.__dict__, **changes})
