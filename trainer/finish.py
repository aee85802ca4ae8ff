"""The mark that a run's results are written. A node that fails after that is started once more by its scheduler, alone:
it has nothing to do, and no peer that it could wait for."""

import json
from collections.abc import Mapping
from pathlib import Path

from trainer.metrics import replace_text

FILE = "finished.json"
RUN_ID = "LAUNCH_RUN_ID"


def mark_finished(output: Path, environ: Mapping[str, str]) -> None:
    """Leave the mark of this run in its output folder."""
    replace_text(output / FILE, json.dumps({"run": environ.get(RUN_ID)}) + "\n")


def is_finished(config: Path, environ: Mapping[str, str]) -> bool:
    """Whether the run that the environment names has left its mark; False when that cannot be known."""
    import yaml

    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8"))["settings"]
        mark = json.loads((Path(settings["output_dir"]) / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        return False
    return RUN_ID in environ and mark == {"run": environ[RUN_ID]}
