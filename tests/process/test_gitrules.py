"""What git ignores is no code: rules above the folder count as git has them, in every kind of work tree."""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from launcher.job.code.snapshot import take_snapshot
from tests.cli_runner import Launch

ROOT = Path(__file__).parents[2]
CLEAN = {**os.environ, "GIT_CONFIG_GLOBAL": "/dev/null", "GIT_CONFIG_SYSTEM": "/dev/null"}


def git(folder: Path, *words: str) -> str:
    """A git command in a folder."""
    words = ("-c", "user.name=a", "-c", "user.email=a@b", *words)
    return subprocess.run(["git", *words], cwd=folder, env=CLEAN, text=True, capture_output=True, check=True).stdout


def write(folder: Path, files: dict[str, str]) -> None:
    """Files with their texts."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


FILES = {
    ".gitignore": "outputs/\n*.log\n/top.txt\n/mid/in/anchored\nboth/\n!kept.log\n",
    "mid/.gitignore": "*.tmp\n!wanted.log\n/own.txt\nin/deep/\n",
    "mid/in/.gitignore": "!x.tmp\n",
    **{f"mid/in/{name}": "" for name in (
        "a.py", "outputs/w.bin", "sub/outputs/w.bin", "a.log", "kept.log", "wanted.log", "top.txt", "anchored/x.py",
        "b.tmp", "x.tmp", "own.txt", "deep/d.py", "both/b.py", "private/p.py", "sub/a.py")},
}


def work_tree(folder: Path) -> Path:
    """A work tree that has rules everywhere, in .git/info/exclude too."""
    folder.mkdir()
    git(folder, "init", "-q")
    write(folder, FILES)
    write(folder, {".git/info/exclude": "private/\n!kept.log\n"})
    return folder


@pytest.mark.parametrize("where", ["", "mid", "mid/in", "mid/in/sub"])
def test_code_is_what_git_would_take_in(tmp_path, where):
    top = work_tree(tmp_path / "repo")
    listed = git(top / where, "ls-files", "-z", "--others", "--cached", "--exclude-standard").split("\0")[:-1]
    assert take_snapshot(top / where).files == tuple(sorted(listed))


def test_launchignore_takes_in_what_a_file_above_leaves_out(tmp_path):
    top = work_tree(tmp_path / "repo")
    write(top, {"mid/in/.launchignore": "!outputs/\n!private/\n"})
    files = take_snapshot(top / "mid/in").files
    assert {"outputs/w.bin", "sub/outputs/w.bin", "private/p.py"} <= set(files)
    assert "a.log" not in files


def test_a_linked_work_tree_and_a_submodule_have_the_rules_of_their_repositories(tmp_path):
    top = work_tree(tmp_path / "repo")
    git(top, "add", ".")
    git(top, "commit", "-qm", "x")
    git(top, "worktree", "add", "-q", "../linked")
    write(tmp_path / "linked", {"mid/in/private/p.py": "", "mid/in/new.py": ""})
    assert {"private/p.py", "new.py"} & set(take_snapshot(tmp_path / "linked/mid/in").files) == {"new.py"}

    outer = work_tree(tmp_path / "outer")
    git(outer, "-c", "protocol.file.allow=always", "submodule", "add", "-q", str(top), "part")
    write(outer, {".git/modules/part/info/exclude": "secret/\n"})
    write(outer / "part/mid/in", {"secret/s.py": "", "new.py": ""})
    assert {"secret/s.py", "new.py"} & set(take_snapshot(outer / "part/mid/in").files) == {"new.py"}


@pytest.mark.parametrize("rule", ["mid/", "/mid/in", "*", "in/"])
def test_a_folder_that_git_ignores_itself_is_code_when_it_is_named(tmp_path, rule):
    write(tmp_path, {"repo/.git/HEAD": "", "repo/.gitignore": f"{rule}\n", "repo/mid/in/a.py": "",
                     "repo/mid/in/.gitignore": "b.py\n", "repo/mid/in/b.py": ""})
    assert take_snapshot(tmp_path / "repo/mid/in").files == (".gitignore", "a.py")


def test_outside_of_a_work_tree_nothing_above_counts(tmp_path):
    write(tmp_path, {".gitignore": "*.py\n", "in/a.py": ""})
    assert take_snapshot(tmp_path / "in").files == ("a.py",)


def test_the_quickstart_can_be_rendered_for_kubernetes_after_the_demo(launch: Launch):
    """The demo leaves more weights in its folder than code may be large; a .gitignore far above leaves them out."""
    quickstart = launch.cwd / "examples/quickstart"
    shutil.copytree(ROOT / "examples/quickstart", quickstart, ignore=shutil.ignore_patterns("outputs"))
    shutil.copy(ROOT / ".gitignore", launch.cwd)
    git(launch.cwd, "init", "-q")
    (quickstart / "outputs/base/model").mkdir(parents=True)
    (quickstart / "outputs/base/model/model.safetensors").write_bytes(os.urandom(9_000_000))
    launch.cwd = quickstart
    rendered = launch.ok("render", "job.yaml", "--backend", "kubernetes")
    assert "code.tar.gz.0" in rendered and "code.tar.gz.1" not in rendered
