"""The code snapshot: what is in it, and that its hash and its archive depend on nothing else."""

import io
import os
import tarfile

import pytest

from launcher import snapshot
from launcher.errors import SpecError
from launcher.snapshot import archive, copy_to, take_snapshot


def write(root, **files):
    for name, text in files.items():
        path = root / name.replace("__", "/").replace("DOT", ".")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "code"
    write(root, aDOTpy="a", sub__bDOTpy="b", sub__deep__cDOTtxt="c")
    return root


def test_all_files_sorted_without_git(root):
    write(root, DOTgit__config="x", DOTenv="e")
    assert take_snapshot(root).files == (".env", "a.py", "sub/b.py", "sub/deep/c.txt")


def test_ignore_files_of_every_folder_count(root):
    write(root, DOTgitignore="*.txt\n!keep.txt\nout/\n", out__x="1", keepDOTtxt="k", sub__DOTlaunchignore="/b.py\n",
          other__bDOTpy="stays")
    assert take_snapshot(root).files == (".gitignore", "a.py", "keep.txt", "other/b.py", "sub/.launchignore")


def test_digest_sees_names_contents_and_modes_only(root):
    first = take_snapshot(root).digest
    os.utime(root / "a.py", (1, 1))
    assert take_snapshot(root).digest == first
    os.chmod(root / "a.py", 0o755)
    executable = take_snapshot(root).digest
    os.chmod(root / "a.py", 0o600)
    assert take_snapshot(root).digest == first != executable
    (root / "a.py").write_text("changed")
    changed = take_snapshot(root).digest
    (root / "a.py").rename(root / "z.py")
    assert len({first, executable, changed, take_snapshot(root).digest}) == 4


def test_archive_is_the_same_for_the_same_content(root, tmp_path):
    other = tmp_path / "elsewhere"
    write(other, aDOTpy="a", sub__bDOTpy="b", sub__deep__cDOTtxt="c")
    os.utime(other / "a.py", (1, 1))
    assert archive(take_snapshot(root)) == archive(take_snapshot(other))


def test_archive_unpacks_to_the_files(root, tmp_path):
    (root / "link").symlink_to("a.py")
    (root / "run.sh").write_text("#!/bin/sh\n")
    (root / "run.sh").chmod(0o700)
    with tarfile.open(fileobj=io.BytesIO(archive(take_snapshot(root)))) as tar:
        tar.extractall(tmp_path / "out", filter="data")
    assert (tmp_path / "out/sub/deep/c.txt").read_text() == "c"
    assert os.readlink(tmp_path / "out/link") == "a.py"
    assert os.access(tmp_path / "out/run.sh", os.X_OK)
    assert take_snapshot(tmp_path / "out").digest == take_snapshot(root).digest


def test_copy_is_the_same_code(root, tmp_path):
    (root / "link").symlink_to("sub")
    copy_to(take_snapshot(root), tmp_path / "copy")
    assert take_snapshot(tmp_path / "copy").digest == take_snapshot(root).digest


def test_an_empty_folder_is_fine(tmp_path):
    (tmp_path / "empty").mkdir()
    found = take_snapshot(tmp_path / "empty")
    assert found.files == ()
    copy_to(found, tmp_path / "copy")
    assert (tmp_path / "copy").is_dir()


def test_odd_files_are_carried_or_left_out(root):
    os.mkfifo(root / "pipe")
    (root / "broken").symlink_to("nowhere")
    (root / "sp ace\nünï.py").write_text("x")
    found = take_snapshot(root)
    assert "broken" in found.files
    assert "sp ace\nünï.py" in found.files
    assert "pipe" not in found.files


def test_too_much_names_the_biggest(root, monkeypatch):
    monkeypatch.setattr(snapshot, "MAX_BYTES", 100)
    write(root, big="x" * 200)
    with pytest.raises(SpecError, match=r"(?s)code: got .* with 4 files.*  big\n.*a\.py") as error:
        take_snapshot(root)
    assert ".launchignore" in error.value.hint
