"""Rows that cannot be used: told all at once, or left out and kept in a file."""

import json
from pathlib import Path

from trainer.data.report import Report
from trainer.data.sources import Read
from trainer.errors import ConfigError

SHOWN = 10
KEPT_REASONS = 1000  # different ones that are counted apart
LOOK_AHEAD_ROWS = 1000  # how much further problems are looked for before all are told


class BadRows:
    """`skip` leaves them out and keeps them, with the reason, in the file `rejected`; else `raise_all` tells them."""

    def __init__(self, report: Report, rejected: Path, *, skip: bool) -> None:
        self.report, self.rejected, self.skip = report, rejected, skip
        self._problems: list[str] = []
        self._last_row = 0

    def __bool__(self) -> bool:
        """Whether the job will end for them."""
        return bool(self._problems)

    @property
    def enough(self) -> bool:
        """Whether to stop looking for more."""
        return bool(self._problems) and self.report.read > self._last_row

    def add(self, read: Read, problem: str) -> None:
        """One more."""
        self.report.counts["bad"] += 1
        known = problem in self.report.reasons or len(self.report.reasons) < KEPT_REASONS
        self.report.reasons[problem if known else "other reasons"] += 1
        if self.skip:
            self._keep(read, problem)
            return
        if not self._problems:
            self._last_row = self.report.read + LOOK_AHEAD_ROWS
        self._problems.append(f"{read.place.file}:{read.place.line}: {problem}")

    def raise_all(self) -> None:
        """Raise ConfigError when there were any and none may be skipped."""
        if not self._problems:
            return
        more = len(self._problems) - SHOWN
        raise ConfigError(
            "\n".join(self._problems[:SHOWN]) + (f"\n... and {more} more" if more > 0 else ""),
            "correct the rows, or leave them out and keep a list of them: data.bad_rows: skip",
        )

    def _keep(self, read: Read, problem: str) -> None:
        line = {"file": read.place.file, "line": read.place.line, "problem": problem, "row": read.row}
        with self.rejected.open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, ensure_ascii=False, default=str) + "\n")
