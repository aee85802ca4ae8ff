"""Where a chat is read from and written to: a person's terminal, or files and pipes. Answers go to stdout, all talk to
stderr."""

import json
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TextIO

from trainer.data.message import ToolCall
from trainer.errors import TrainError
from trainer.node.output import terminal_safe

BLOCK = '"""'
# what a terminal would take for orders of ours: all control characters but tab and line end, turns of the direction
CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


class Terminal:
    """`is_person`: somebody types, so prompts are shown and lines can be edited."""

    def __init__(self, source: TextIO, out: TextIO, err: TextIO) -> None:
        self.source, self.out, self.err = source, out, err
        self.is_person = source.isatty()
        self._console: Any = None
        for stream in (source, out, err):
            if hasattr(stream, "reconfigure"):  # text that is none in this encoding is no reason to end
                stream.reconfigure(errors="replace")
        if self.is_person:
            _line_editing()
        if out.isatty():
            from rich.console import Console

            self._console = Console(file=out, highlight=False, markup=False, emoji=False, soft_wrap=True)

    def read(self, prompt: str, draft: str = "") -> str | None:
        """A message: a line, lines that end in a backslash and the next one, or those between two lines of triple
        quotes. `draft`: text to begin with, for a person. None at the end."""
        line = self._line(prompt, draft)
        if line is None or line.strip() != BLOCK:
            return self._joined(line)
        lines: list[str] = []
        while (line := self._line("... ")) is not None and line.strip() != BLOCK:
            lines.append(line)
        return "\n".join(lines)

    def write(self, text: str) -> None:
        """A piece of an answer, at once."""
        if self._console is None:
            self.out.write(text)
            self.out.flush()
        else:
            from rich.text import Text

            self._console.print(Text(CONTROLS.sub("", text)), end="")

    def note(self, text: str) -> None:
        """Talk."""
        self.err.write(f"{terminal_safe(text)}\n")
        self.err.flush()

    def calls(self, calls: Sequence[ToolCall], line: str) -> None:
        """Calls of functions: for a person one a line, elsewhere `line`, which is JSON."""
        if self._console is None:
            self.write(f"{line}\n")
            return
        for call in calls:
            written = (
                call.arguments if isinstance(call.arguments, str) else json.dumps(call.arguments, ensure_ascii=False)
            )
            self.write(f"{call.name} {written}\n")

    def error(self, error: TrainError) -> None:
        """What went wrong, and what to do."""
        for line in error.message.splitlines():
            self.note(f"error: {line}")
        if error.hint:
            self.note(f"hint:  {error.hint}")

    def _joined(self, line: str | None) -> str | None:
        lines = []
        while line is not None and line.endswith("\\"):
            lines.append(line[:-1])
            line = self._line("... ")
        if line is None and not lines:
            return None
        return "\n".join([*lines, *([] if line is None else [line])])

    def _line(self, prompt: str, draft: str = "") -> str | None:
        if self.is_person and self.out.isatty():
            return _typed(prompt, draft)
        if self.is_person:
            self.err.write(prompt)
            self.err.flush()
        line = self.source.readline()
        return line.removesuffix("\n").removesuffix("\r") if line else None


def _line_editing() -> None:
    with suppress(ImportError):
        import readline  # noqa: F401  (input() then edits lines and remembers them)


def _typed(prompt: str, draft: str) -> str | None:
    readline = sys.modules.get("readline")
    if readline and draft:
        readline.set_startup_hook(lambda: readline.insert_text(draft))
    try:
        return input(prompt)
    except EOFError:
        return None
    finally:
        if readline:
            readline.set_startup_hook(None)
