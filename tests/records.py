"""Records of runs, for tests that need one and submit nothing."""

from typing import Any

from launcher.kinds.train.kind import SMALL_FILES
from launcher.runs.record import Outputs, Run
from trainer.config.job import MARKER


def a_run(run_id: str = "a", *, output_dir: object = None, **values: Any) -> Run:
    """A run that was sent; `output_dir`: of a training, where this machine sees it."""
    outputs = Outputs(str(output_dir), str(output_dir), SMALL_FILES, MARKER) if output_dir else None
    return Run(**{
        "run_id": run_id, "name": "n", "kind": "train" if outputs else "run", "backend": "local",
        "handle": f"local://{run_id}", "cluster": None, "nodes": 1, "processes_per_node": 1, "grace_s": 5,
        "restarts": 0, "created": "2026-01-01T00:00:00+00:00", "job_dir": "/", "outputs": outputs, "exit_codes": {},
        **values,
    })  # fmt: skip
