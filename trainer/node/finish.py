"""The mark that a run's results are written. A node that fails after that is started once more by its scheduler, alone:
it has nothing to do, and no peer that it could wait for. The same job in the same folder has nothing to do either."""

import json
from collections.abc import Mapping
from pathlib import Path

from trainer.node.files import replace_text

FILE = "finished.json"
RUN_ID = "LAUNCH_RUN_ID"


def mark_finished(output: Path, environ: Mapping[str, str]) -> None:
    """Leave the mark of this run in its output folder."""
    replace_text(output / FILE, json.dumps({"run": environ.get(RUN_ID)}) + "\n")


def mark_nothing_left(output: Path, environ: Mapping[str, str]) -> None:
    """Note a run that found all results there: it has nothing to do either, but another run has written them."""
    author, run = finished_by(output), environ.get(RUN_ID)
    if run != author:
        replace_text(output / FILE, json.dumps({"run": author, "nothing_left": run}) + "\n")


def unmark_finished(output: Path) -> None:
    """Take the mark away: training goes on there."""
    (output / FILE).unlink(missing_ok=True)


def has_finished(output: Path) -> bool:
    """Whether a run has left its mark."""
    return (output / FILE).is_file()


def finished_by(output: Path) -> str | None:
    """The run that has written the results; None when it had no name, or when that cannot be known."""
    return _named(output, "run")


def is_finished(config: Path, environ: Mapping[str, str]) -> bool:
    """Whether the run that the environment names has nothing to do; False when that cannot be known."""
    import yaml

    try:
        output = Path(yaml.safe_load(config.read_text(encoding="utf-8"))["settings"]["output_dir"])
    except (OSError, ValueError, LookupError, TypeError, yaml.YAMLError):
        return False
    return RUN_ID in environ and environ[RUN_ID] in (finished_by(output), _named(output, "nothing_left"))


def _named(output: Path, role: str) -> str | None:
    try:
        run = json.loads((output / FILE).read_text(encoding="utf-8"))[role]
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return run if isinstance(run, str) else None
