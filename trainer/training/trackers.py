"""Where the numbers of a run are shown, besides its log and metrics.jsonl: transformers' own reports, by name.

They get transformers' arguments and the model's shape, never the environment, in which secrets are, nor the job's data
section, whose addresses may hold one.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

from transformers.integrations import TensorBoardCallback, get_reporting_integration_callbacks

from trainer.errors import ConfigError

TENSORBOARD = "tensorboard"


def find_trackers(asked: Sequence[str] | None, tell: Callable[[str], None]) -> list[str]:
    """Names of the reports to make: those asked for, or TensorBoard where it is installed. Raises ConfigError for one
    that cannot be made here."""
    for name in [TENSORBOARD] if asked is None else asked:
        try:
            [make] = get_reporting_integration_callbacks([name])
            make()
        except (RuntimeError, ImportError) as error:
            if asked is None:
                tell("TensorBoard is not installed here (pip install tensorboard): training goes on without it")
                return []
            raise ConfigError(
                f"runtime.report_to: got {name}, which cannot be used here: {str(error).splitlines()[0]}",
                "install its package where the training runs, or take the name out of runtime.report_to",
            ) from error
    return [TENSORBOARD] if asked is None else list(asked)


def tensorboard(folder: Path, step: int) -> TensorBoardCallback:
    """Reports into `folder`, on rank 0. What an earlier start has reported of the steps after `step` is hidden: this
    one does them again."""
    from torch.utils.tensorboard import SummaryWriter

    return TensorBoardCallback(SummaryWriter(str(folder), purge_step=step + 1 if step else None))
