"""`python:`: a Python program that stands in the job file itself."""

from typing import Any

from pydantic import Field

from launcher.job.kind import Context, Kind
from launcher.job.payload import ExitCodes, FilePath, Payload
from trainer.config.job import Section

NO_SUCH_ROW = 65


class PythonSection(Section):
    """The program and its arguments."""

    program: str = Field(min_length=1, description="Text of the program.")
    arguments: list[str] = Field([], description="Words behind it.")


class Python(Kind):
    """The program travels as a file of the payload, whose path each back end knows. Its nodes need not meet."""

    key = "python"
    model = PythonSection
    description = "Run this Python program on every node."

    def payload(self, section: Any, context: Context) -> Payload:
        """The interpreter that the cluster's profile names, and the file."""
        return Payload(
            kind=self.key,
            argv=(context.python, FilePath("program.py"), *section.arguments),
            files={"program.py": section.program},
            env={"PYTHONSAFEPATH": "1"},
            rendezvous=False,
            exit_codes=ExitCodes({NO_SUCH_ROW: "the program did not find its row"}, final=(NO_SUCH_ROW,)),
        )
