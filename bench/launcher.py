"""The launcher's figures in one run of a quarter of an hour: start-up beside TorchX, the log follower, fuzzed job
files, and drills.

Each part is a script of its own and can be run alone; this one shows their tables and, as its last line, one JSON
object with the figures of all. Ends with 1 when a part failed.
"""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PARTS = ("cli.py", "clusters/follower.py", "clusters/fuzz.py", "clusters/drills.py")
KEYS = ("lines_lost", "lines_doubled", "lines_per_s", "follow_delay_ms", "help_ratio", "render_ratio", "drills_passed",
        "drills", "fuzz_tracebacks")


def main() -> int:
    """Run every part, also after one has failed."""
    figures: dict[str, Any] = {}
    failed = []
    for part in PARTS:
        print(f"== {part}", flush=True)
        code, found = run_part(part)
        figures |= found
        if code:
            failed.append(part)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    print(json.dumps({key: figures.get(key) for key in KEYS}))
    return 1 if failed else 0


def run_part(part: str) -> tuple[int, dict[str, Any]]:
    """Its exit code and the figures of its last line; what it prints is shown as it comes."""
    last = ""
    with subprocess.Popen([sys.executable, str(HERE / part)], stdout=subprocess.PIPE, text=True) as process:
        for line in process.stdout or ():
            print(line, end="", flush=True)
            last = line if line.strip() else last
    try:
        found = json.loads(last)
    except ValueError:
        return process.returncode or 1, {}
    return process.returncode, found if isinstance(found, dict) else {}


if __name__ == "__main__":
    sys.exit(main())
