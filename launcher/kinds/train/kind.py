"""`train:`: fine-tune a model with the trainer of this project."""

import json
from collections.abc import Iterable, Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from launcher.job.kind import Context, Estimable, Input, Kind, Loc, ReadsFiles, Resumable, ShowsData
from launcher.job.payload import ExitCodes, FilePath, Outputs, Payload
from launcher.job.spec import Mount
from launcher.kinds.train.inputs import inputs
from trainer.config.job import MARKER, TrainConfig, config_text

if TYPE_CHECKING:
    from launcher.job.prepared import Prepared
    from launcher.kinds.train.assess import Assessment

CONFIG = "train.yaml"
DIVERGED, WRONG_CONFIG = 70, 78  # trainer/errors.py
SMALL_FILES = ("*.json", "*.jsonl", "*.yaml", "*.md", "*.png", "*.txt", "adapter/*")


class Train(Kind, Resumable, Estimable, ReadsFiles, ShowsData):
    """The trainer's entrypoint with the five sections in a file. It vouches for 75: none of its processes ends with it
    unless it was asked to and has saved."""

    key = "train"
    model = TrainConfig
    description = "Fine-tune a model; the five sections."
    data_file = CONFIG
    output_field = ("settings", "output_dir")

    def payload(self, section: TrainConfig, context: Context) -> Payload:
        """A training's own Python never takes a module from the working directory, which other runs may write to."""
        folder = _output_dir(section, context)
        return Payload(
            kind=self.key,
            argv=(context.python, "-m", "trainer.node.entrypoint", "--config", FilePath(CONFIG)),
            files={CONFIG: _config(section, folder)},
            env={"PYTHONSAFEPATH": "1"},
            exit_codes=ExitCodes({DIVERGED: "training diverged", WRONG_CONFIG: "wrong configuration or data"},
                                 final=(WRONG_CONFIG,), vouched=True),
            outputs=Outputs(folder, SMALL_FILES, MARKER),
            log_copy=(context.python, "-P", "-m", "trainer.node.archive"),
        )

    def owns_folder(self, section: TrainConfig) -> bool:
        """When the job names no output_dir."""
        return section.settings.output_dir is None

    def going_on(self, section: TrainConfig, folder: str) -> TrainConfig:
        """From the newest checkpoint there."""
        settings = section.settings.model_copy(update={"output_dir": folder})
        runtime = section.runtime.model_copy(update={"resume": "auto"})
        return section.model_copy(update={"settings": settings, "runtime": runtime})

    def settled(self, folder: str) -> dict[Loc, str]:
        """Where it trains, and that it goes on there."""
        return {self.output_field: folder, ("runtime", "resume"): "auto"}

    def inputs(self, section: Any) -> Iterator[Input]:
        """Model, rows, images and DeepSpeed's own JSON."""
        return inputs(section)

    def assess(self, section: TrainConfig, prepared: "Prepared", gpu_memory: str | None = None) -> "Assessment":
        """Its memory against what there is."""
        from launcher.kinds.train.assess import assess

        return assess(prepared, section, gpu_memory)


def _output_dir(train: TrainConfig, context: Context) -> str:
    """Where a run writes, as the trainer sees it: what the job names, else a folder of the run's own; such a one, too,
    beside what the job names, when that was asked for, or within it where that is a whole volume."""
    named = train.settings.output_dir
    if named is None:
        return f"outputs/{context.run_id}"
    return beside(named, context.run_id, context.mounts) if context.own_folder else named


def beside(folder: str, name: str, mounts: Iterable[Mount]) -> str:
    """A folder of that name beside `folder`, on the same volume."""
    path = PurePosixPath(folder)
    is_volume = path in {PurePosixPath(mount.path) for mount in mounts}
    return str((path if is_volume else path.parent) / name)


def _config(train: TrainConfig, output_dir: str) -> str:
    """The five sections as the trainer will read them: every default written out, so that a run explains itself."""
    sections: dict[str, Any] = json.loads(json.dumps(train, default=dict))
    sections["settings"]["output_dir"] = output_dir
    if train.model.init is None:
        del sections["model"]["shape"]
    return config_text(sections)
