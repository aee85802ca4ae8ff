"""What of a job's or a cluster's text may reach a terminal: nothing that it would obey, but a job's colours. Pure."""

import json
import re
from typing import Any

# Control characters but tab and line end (ECMA-48), other line ends, those that turn the direction of writing (their
# text would read as something else), and halves of characters, which cannot be written.
_OBEYED = "\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff"
_ANY_OBEYED = re.compile(f"[{_OBEYED}]")

# SGR (colours) is kept. Everything else goes: other CSI sequences, strings (OSC, DCS, ...), two-byte escapes, and
# what stands for itself.
_CONTROL = re.compile(
    r"(\x1b\[[\d;:]*m)"
    r"|\x1b\[[0-?]*[ -/]*[@-~]"
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\|$)"
    r"|\x1b[ -/]*[0-Z\\^-~]"
    f"|[\n{_OBEYED}]"
)


def printable(text: str) -> str:
    """A line of a job with its colours and without any other control sequence."""
    return _CONTROL.sub(lambda match: match[1] or "", text)


def terminal_safe(text: str) -> str:
    """The text, of any number of lines, with a picture or the number of what a terminal would obey."""
    return _ANY_OBEYED.sub(lambda match: _picture(ord(match[0])), text)


def json_text(value: Any) -> str:
    """A value as one line of JSON, in which what a terminal would obey is escaped."""
    return _ANY_OBEYED.sub(lambda match: f"\\u{ord(match[0]):04x}", json.dumps(value, ensure_ascii=False))


def _picture(code: int) -> str:
    return chr(0x2400 + code) if code < 0x20 else f"<U+{code:04X}>"
