"""`run:`: a command of the user's, on every node."""

from typing import Annotated, Any

from pydantic import AfterValidator, Field

from launcher.job.kind import Context, Kind
from launcher.job.payload import ExitCodes, Payload
from launcher.job.types import single_line

WRONG_CONFIG = 78  # EX_CONFIG


class Command(Kind):
    """Nothing is known of it but its exit code. It may come from any machine, so its 75 is believed only where launch
    itself has asked it to stop."""

    key = "run"
    model = Annotated[list[Annotated[str, AfterValidator(single_line)]], Field(min_length=1)]
    description = "Run this command on every node instead of `train`."

    def payload(self, section: Any, context: Context) -> Payload:
        """The command as it is."""
        codes = ExitCodes({WRONG_CONFIG: "wrong configuration or data"}, final=(WRONG_CONFIG,))
        return Payload(self.key, tuple(section), exit_codes=codes)
