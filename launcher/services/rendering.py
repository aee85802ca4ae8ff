"""From a prepared job to what is sent."""

from launcher.backends.registry import BACKENDS
from launcher.job.prepared import Prepared
from launcher.job.rendered import Rendered


def rendered(prepared: Prepared, run_id: str) -> Rendered:
    """What would be sent under this run id."""
    return BACKENDS.load(prepared.profile.backend).rendered(prepared.plan(run_id))
