"""The mark that a run's results are written. A node that fails after that is started once more by its scheduler, alone:
it has nothing to do, and no peer that it could wait for. The same job in the same folder has nothing to do either."""

import json
from collections.abc import Mapping
from pathlib import Path

from trainer.metrics import replace_text

FILE = "finished.json"
RUN_ID = "LAUNCH_RUN_ID"


def mark_finished(output: Path, environ: Mapping[str, str]) -> None:
    """Leave the mark of this run in its output folder."""
    replace_text(output / FILE, json.dumps({"run": environ.get(RUN_ID)}) + "\n")


def has_finished(output: Path) -> bool:
    """Whether a run has left its mark."""
    return (output / FILE).is_file()


def finished_by(output: Path) -> str | None:
    """The run that has left its mark; None when it had no name, or when that cannot be known."""
    try:
        run = json.loads((output / FILE).read_text(encoding="utf-8"))["run"]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return run if isinstance(run, str) else None


def is_finished(config: Path, environ: Mapping[str, str]) -> bool:
    """Whether the run that the environment names has left its mark; False when that cannot be known."""
    import yaml

    try:
        output = Path(yaml.safe_load(config.read_text(encoding="utf-8"))["settings"]["output_dir"])
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        return False
    return RUN_ID in environ and finished_by(output) == environ[RUN_ID]
