"""The rules of docs/architecture.md that no linter holds."""

import ast
import re
from pathlib import Path

LAUNCHER = Path(__file__).parents[2] / "launcher"
FILES = sorted(LAUNCHER.rglob("*.py"))


def test_nobody_but_the_kinds_asks_whether_a_job_trains():
    asks = re.compile(r"TrainConfig|\.train\b(?!\.)|train\.yaml|[\"']train[\"']|kind == [\"'](train|run)\b")
    found = [f"{path.relative_to(LAUNCHER)}: {line.strip()}" for path in FILES if "kinds" not in path.parts
             for line in path.read_text(encoding="utf-8").splitlines()
             if asks.search(line) and not line.lstrip().startswith("from launcher.kinds.train.")]
    assert found == []


def test_files_and_functions_are_short():
    for path in FILES:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                assert (node.end_lineno or 0) - node.lineno < 60, f"{path}: {node.name}"


def test_the_folder_listing_is_the_architecture():
    page = (LAUNCHER.parent / "docs/architecture.md").read_text(encoding="utf-8")
    listed = {path.name for path in LAUNCHER.iterdir()} - {"__init__.py", "py.typed", "__pycache__"}
    assert len(listed) <= 11
    for name in listed:
        assert f"`{name}`" in page or f"`{name}/`" in page, name
