"""How a process prints. All but the first of a node put their rank in front of every line, so that it is known where
a line comes from. Rows, answers and file names are in what is printed, so nothing is that a terminal would obey."""

import io
import os
import re
import sys
from collections.abc import Mapping
from typing import TextIO

_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def mark_lines(environ: Mapping[str, str]) -> None:
    """From now on every line that Python prints here starts with `[rank R] `, unless this is the node's first process.

    Reads torchrun's RANK and LOCAL_RANK. What native code writes to the descriptors itself is not marked.
    """
    if environ.get("LOCAL_RANK", "0") != "0":
        prefix = f"[rank {environ['RANK']}] "
        sys.stdout, sys.stderr = MarkedStream(sys.stdout, prefix), MarkedStream(sys.stderr, prefix)


def quiet() -> None:
    """Libraries talk about what users cannot change; warnings of ours are printed by us."""
    import logging
    import warnings

    warnings.filterwarnings("ignore")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    for name in ("deepspeed", "DeepSpeed", "torch.distributed", "bitsandbytes"):
        logging.getLogger(name).setLevel(logging.ERROR)


def terminal_safe(text: str) -> str:
    """The text with a picture or the number of each character that a terminal would obey or cannot write: control
    characters but tab and line end, and those that turn the direction of writing."""
    return _OBEYED.sub(lambda found: picture(ord(found.group())), text)


def picture(code: int) -> str:
    """What stands for such a character."""
    return chr(0x2400 + code) if code < 0x20 else f"<U+{code:04X}>"


def complain(text: str) -> None:
    """Print what went wrong, on stderr."""
    sys.stderr.write(terminal_safe(text))


def show(line: str) -> None:
    """Print a line at once; on a terminal the values of a step line are coloured."""
    line = terminal_safe(line)
    if not sys.stdout.isatty():
        print(line, flush=True)  # noqa: T201
        return
    from rich.console import Console
    from rich.text import Text

    text = Text(line)
    if line.startswith("step "):
        text.highlight_regex(r"(?<= )\S+(?=  |$)", "cyan")
    Console(highlight=False, soft_wrap=True).print(text)


class MarkedStream(io.TextIOBase, TextIO):
    """Writes whole lines, each in one call, so that lines of several processes do not mix."""

    def __init__(self, stream: TextIO, prefix: str) -> None:
        self._stream, self._prefix, self._rest = stream, prefix, ""

    def write(self, text: str) -> int:
        """Pass on the lines that are complete."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._stream.write(f"{self._prefix}{line}\n")
            self._stream.flush()
        return len(text)

    def flush(self) -> None:
        """A line that is not complete waits for its end."""

    def close(self) -> None:
        """At the end of the process a last line without its end goes out too."""
        if self._rest:
            self.write("\n")

    def fileno(self) -> int:
        """The descriptor below, which faulthandler and child processes want."""
        return self._stream.fileno()
