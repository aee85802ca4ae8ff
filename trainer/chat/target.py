"""What a user talks with: a model folder, a name on the hub, or what a run has trained. [I/O]"""

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from trainer.checkpoints.results import (
    ADAPTER,
    CONFIG,
    MODEL,
    Found,
    describe,
    find_result,
    is_run,
    output_folder,
    read_adapter,
)
from trainer.config.job import Model, Sampling, TrainConfig
from trainer.errors import ConfigError


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
    if is_run(output_folder(folder)):
        return _of_run(find_result(folder, unfinished=True), job_dir)
    if (folder / ADAPTER).is_file():
        return Target(_base_name(folder), _base_name(folder), folder)
    if folder.is_dir() and not (folder / MODEL).is_file():
        raise ConfigError(
            f"model: got {folder}, allowed: the folder of a checkpoint ({MODEL}), of an adapter ({ADAPTER}), or "
            f"the output folder of a run ({CONFIG})"
        )
    return None


def _of_run(found: Found, job_dir: Path | None) -> Target:
    trained, model = describe(found, job_dir), found.config.model
    return Target(
        trained.base,
        trained.tokenizer,
        trained.adapter,
        quantization=model.quantization,
        dtype=model.dtype,
        on_cpu=found.config.settings.device == "cpu",
        section=model,
        **_manner(found),
    )


def _manner(found: Found) -> dict[str, Any]:
    """How a model that the run has trained is talked with."""
    config = found.config
    return {
        "template": config.model.chat_template,
        "source": str(found.output / CONFIG),
        "system": _system(config),
        "sampling": config.runtime.sampling,
    }


def _system(config: TrainConfig) -> str:
    """The system message that all sources give to their conversations, if it is one."""
    texts = {source.system for source in config.data.sources}
    return (texts.pop() or "") if len(texts) == 1 else ""


def _base_name(adapter: Path) -> str:
    base = read_adapter(adapter).get("base_model_name_or_path")
    if not base:
        raise ConfigError(f"{adapter / ADAPTER}: names no base", f"launch chat BASE --adapter {adapter}")
    return str(base)


def _with_adapter(target: Target, adapter: Path) -> Target:
    """The template is that of the run that has trained the adapter, where that is known."""
    found = find_result(adapter, unfinished=True) if is_run(output_folder(adapter)) else None
    folder = found.part if found else adapter
    if not (folder / ADAPTER).is_file():
        raise ConfigError(f"--adapter: got {adapter}, allowed: a folder with {ADAPTER}, or a run that trained one")
    return replace(target, adapter=folder, **(_manner(found) if found else {}))
