"""The rules of docs/architecture.md that no linter holds."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
LAUNCHER, TRAINER = ROOT / "launcher", ROOT / "trainer"
FILES = sorted(LAUNCHER.rglob("*.py"))


def test_nobody_but_the_kinds_asks_whether_a_job_trains():
    asks = re.compile(r"TrainConfig|\.train\b(?!\.)|train\.yaml|[\"']train[\"']|kind == [\"'](train|run)\b")
    found = [f"{path.relative_to(LAUNCHER)}: {line.strip()}" for path in FILES if "kinds" not in path.parts
             for line in path.read_text(encoding="utf-8").splitlines()
             if asks.search(line) and not line.lstrip().startswith("from launcher.kinds.train.")]
    assert found == []


def test_files_and_functions_are_short():
    for path in (*FILES, *TRAINER.rglob("*.py")):
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


def test_the_trainers_folder_listing_is_the_architecture():
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8")
    listed = {path.name for path in TRAINER.iterdir()} - {"__init__.py", "py.typed", "__pycache__"}
    assert {name for name in listed if name.endswith(".py")} == {"cli.py", "engine.py", "errors.py"}
    for name in listed:
        assert f"`{name}`" in page or f"`{name}/`" in page, name


def test_benchmarks_import_what_is_there():
    """They are run by hand, and would only then be missed."""
    for path in ROOT.glob("bench/**/*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and re.match("(launcher|trainer|tests)[.]", f"{node.module}."):
                for name in node.names:
                    assert is_there(node.module.split("."), name.name), f"{path}: {node.module}.{name.name}"


def is_there(module: list[str], name: str) -> bool:
    """Whether the name is a module, or bound in one; nothing is imported."""
    folder = ROOT.joinpath(*module)
    if (folder / name).is_dir() or (folder / f"{name}.py").is_file():
        return True
    file = folder / "__init__.py" if folder.is_dir() else folder.with_suffix(".py")
    return file.is_file() and re.search(rf"\b{name}\b", file.read_text(encoding="utf-8")) is not None
