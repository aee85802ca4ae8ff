"""Lines of a node's other processes carry their rank."""

import subprocess
import sys
from pathlib import Path

BODY = """
import os, sys
from trainer.node.output import mark_lines
mark_lines(os.environ)
print("one", 1)
sys.stderr.write("half ")
sys.stderr.write("a line\\nand ")
sys.stderr.write("the end")
print("two\\nthree", flush=True)
raise ValueError("told")
"""


def printed(**environ):
    done = subprocess.run([sys.executable, "-c", BODY], env=environ, cwd=Path(__file__).parents[2],
                          capture_output=True, text=True)
    return done.stdout.splitlines(), done.stderr.splitlines()


def test_the_first_process_of_a_node_prints_as_it_is():
    out, _ = printed(RANK="8", LOCAL_RANK="0")
    assert out == ["one 1", "two", "three"]


def test_every_line_of_another_process_carries_its_rank():
    out, errors = printed(RANK="9", LOCAL_RANK="1")
    assert out == ["[rank 9] one 1", "[rank 9] two", "[rank 9] three"]
    assert errors[0] == "[rank 9] half a line"
    assert errors[-1] == "[rank 9] ValueError: told"
    assert all(line.startswith("[rank 9] ") for line in errors)
