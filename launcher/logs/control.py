"""What of a job's bytes may reach a terminal: colours, but nothing that moves the user's cursor. Pure."""

import re

# SGR (colours) is kept. Everything else goes: other CSI sequences, strings (OSC, DCS, ...), two-byte escapes, and
# control characters but the tab (ECMA-48).
_CONTROL = re.compile(
    r"(\x1b\[[\d;:]*m)"
    r"|\x1b\[[0-?]*[ -/]*[@-~]"
    r"|\x1b[\]PX^_].*?(?:\x07|\x1b\\|$)"
    r"|\x1b[ -/]*[0-Z\\^-~]"
    r"|[\x00-\x08\x0a-\x1f\x7f-\x9f\u2028\u2029]"
)


def printable(text: str) -> str:
    """The text with its colours and without any other control sequence."""
    return _CONTROL.sub(lambda match: match[1] or "", text)
