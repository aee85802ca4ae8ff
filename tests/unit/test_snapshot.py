"""The code snapshot: what is in it, and that its hash and its archive depend on nothing else."""

import errno
import gzip
import io
import os
import random
import re
import shutil
import subprocess
import tarfile
import threading
from pathlib import Path

import pytest

from launcher.errors import LaunchError, SpecError
from launcher.job.code import files as codefiles
from launcher.job.code.snapshot import archive, copy_to, take_snapshot


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
    write(root, DOTgit__config="x", DOThidden="e")
    assert take_snapshot(root).files == (".hidden", "a.py", "sub/b.py", "sub/deep/c.txt")


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


def test_too_much_names_the_biggest_and_the_line_to_write(root, monkeypatch):
    monkeypatch.setattr(codefiles, "MAX_BYTES", 1000)
    write(root, data__raw__aDOTbin="x" * 900, data__raw__bDOTbin="x" * 600, bigDOTbin="y" * 500)
    with pytest.raises(SpecError) as error:
        take_snapshot(root)
    lines = error.value.message.splitlines()
    assert lines[0].startswith(f"code: {root} has 6 files, 0 MiB; at most 100000 files")
    assert [line.split("MiB  ")[1] for line in lines[1:3]] == ["data/raw/ (2 files)", "big.bin"]
    before, _, command = error.value.hint.partition("leave it out: ")
    assert before == "mount data instead, and "
    subprocess.run(["bash", "-c", command], check=True)
    (root / "big.bin").unlink()
    assert take_snapshot(root).files == (".launchignore", "a.py", "sub/b.py", "sub/deep/c.txt")


def test_too_many_files_are_soon_refused(root, monkeypatch):
    monkeypatch.setattr(codefiles, "MAX_FILES", 20)
    write(root, **{f"cache__x__{i}": "" for i in range(100)})
    with pytest.raises(SpecError, match=r"has at least 21 files.*\n(.*\n)*.*cache/x/ \(\d+ files\)") as error:
        take_snapshot(root)
    assert "/cache/x/ >>" in error.value.hint


def test_a_whole_machine_is_no_code():
    with pytest.raises(SpecError, match="code: must be a folder of code, not /, which is the whole machine"):
        take_snapshot(Path("/"))


def test_a_large_snapshot_is_described(root):
    assert not take_snapshot(root).is_large
    (root / "weights.bin").write_bytes(bytes(11 << 20))
    found = take_snapshot(root)
    assert found.is_large
    assert found.described().splitlines()[:2] == [
        "code: 11.0 MiB in 4 files; .launchignore can leave some out; the biggest:", "      11.0 MiB  weights.bin"]


def test_a_deeper_rule_and_launchignore_have_the_last_word(root):
    """What `.gitignore` leaves out, such as generated code that a job needs, can be taken in again."""
    write(root, DOTgitignore="*.gen\nlocal/\n", DOTlaunchignore="!need.gen\n", needDOTgen="n", otherDOTgen="o",
          local__x="x", sub__DOTlaunchignore="!*.gen\n", sub__deepDOTgen="d")
    assert [name for name in take_snapshot(root).files if not name.startswith(("a.py", "."))] == [
        "need.gen", "sub/.launchignore", "sub/b.py", "sub/deep.gen", "sub/deep/c.txt"]


@pytest.mark.parametrize("name", [
    ".env", "deploy/.env.production", "id_rsa", ".ssh/id_ed25519", ".netrc", "home/.aws/credentials", "kubeconfig",
    ".kube/config", "cert.p12", ".git-credentials", ".huggingface/token",
])
def test_credentials_are_refused_with_the_line_that_leaves_them_out(root, name):
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text("whatever it holds\n")
    with pytest.raises(SpecError) as error:
        take_snapshot(root)
    assert error.value.message == f"code: {root} holds credentials: {name}"
    subprocess.run(["bash", "-c", error.value.hint.removeprefix("leave it out: ").partition(" (a line")[0]], check=True)
    assert name not in take_snapshot(root).files


@pytest.mark.parametrize(("name", "text"), [
    ("server.pem", "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n"), ("prod.env", "A=b\nexport DB_PASSWORD=hunter2hunter\n"),
    ("gcp.json", '{"private_key": "-----BEGIN PRIVATE KEY-----\\nMII"}'),
    (".npmrc", "//r/:_authToken=npm_" + "a1" * 18),
])
def test_files_that_may_hold_credentials_are_looked_into(root, name, text):
    (root / name).write_text(text)
    with pytest.raises(SpecError, match="holds credentials"):
        take_snapshot(root)


@pytest.mark.parametrize(("name", "text"), [
    (".env.example", "HF_TOKEN=\n"), (".env", ""), ("ca.pem", "-----BEGIN CERTIFICATE-----\nMIIE\n"),
    ("id_rsa.pub", "ssh-rsa AAAA"), ("settings.json", '{"tokenizer": "hf_models/a", "max_tokens": 5}'),
    ("dev.env", "PYTHONPATH=src\nTOKENIZERS_PARALLELISM=true\n"), ("config", "x"), ("credentials.py", "x = 1"),
])
def test_files_that_only_look_like_credentials_travel(root, name, text):
    (root / name).write_text(text)
    assert name in take_snapshot(root).files


def test_a_file_that_is_insisted_on_travels(root):
    write(root, DOTenv="PYTHONPATH=src\n", DOTlaunchignore="!/.env\n")
    assert ".env" in take_snapshot(root).files


INWARD = {"loop": ".", "broken": "nowhere", "sub/up": "../a.py", "sub/over": "../sub/../sub/./deep//c.txt",
          "self": "self", "one": "two", "two": "sub/deep", "through": "one/../b.py", "to-what-is-left-out": "left-out"}


def test_links_inside_the_folder_travel_as_they_are(root):
    write(root, DOTlaunchignore="/left-out\n")
    (root / "left-out").write_text("")
    for name, target in INWARD.items():
        (root / name).symlink_to(target)
    with tarfile.open(fileobj=io.BytesIO(archive(take_snapshot(root)))) as tar:
        assert {info.name: info.linkname for info in tar if info.issym()} == INWARD


def test_links_that_lead_out_are_refused_all_at_once_with_the_line_that_leaves_them_out(root, tmp_path):
    """Also through other links: each of these works here, and leads nowhere in a pod."""
    write(tmp_path, outside__secretDOTtxt="not code")
    for name, target in INWARD.items():
        (root / name).symlink_to(target)
    outward = {"absent": "/no/such/file", "back": "../code/a.py", "chain": "file", "file": "../outside/secret.txt",
               "folder": str(tmp_path / "outside"), "inside": str(root / "a.py"), "loop2": "loop/../outside",
               "sub/far": "../../outside", "too far": "one/../../../outside"}
    for name, target in outward.items():
        (root / name).symlink_to(target)
    with pytest.raises(SpecError) as error:
        take_snapshot(root)
    first, *lines = error.value.message.splitlines()
    assert first == f"code: these links lead out of {root}, and a job has only what is inside:"
    remark = " (inside, but absolute: make it relative)"
    assert lines == [f"  {name} -> {target}{remark if name == 'inside' else ''}" for name, target in outward.items()]
    before, _, command = error.value.hint.partition("leave it out: ")
    assert before == "copy the files into the folder, or mount them; where the job does not need a link, "
    subprocess.run(["bash", "-c", command], check=True)
    assert take_snapshot(root).files == tuple(sorted([".launchignore", "a.py", "sub/b.py", "sub/deep/c.txt", *INWARD]))


def test_a_file_behind_a_link_is_never_read(root):
    write(root, inner__xDOTtxt="here once")
    (root / "again").symlink_to("inner")
    assert gzip.decompress(archive(take_snapshot(root))).count(b"here once") == 1


def test_a_copy_can_only_be_read_and_be_removed(root, tmp_path):
    (root / "sub/b.py").chmod(0o777)
    (root / "link").symlink_to("a.py")
    copy_to(take_snapshot(root), tmp_path / "copy")
    files = [path for path in (tmp_path / "copy").rglob("*") if path.is_file() and not path.is_symlink()]
    assert [path.stat().st_mode & 0o222 for path in files] == [0, 0, 0]
    assert os.access(tmp_path / "copy/sub/b.py", os.X_OK)
    assert root.joinpath("sub/b.py").stat().st_mode & 0o777 == 0o777
    subprocess.run(["rm", "-r", tmp_path / "copy"], check=True, stdin=subprocess.DEVNULL)


def test_what_is_too_large_when_packed_is_refused_as_soon_as_it_is(root):
    """The largest is named; what comes after the limit is not even read."""
    (root / "a.bin").write_bytes(random.Random(0).randbytes(9_000_000))
    (root / "b.bin").write_bytes(bytes(10))
    found = take_snapshot(root)
    (root / "b.bin").write_bytes(b"changed meanwhile")
    with pytest.raises(SpecError) as error:
        archive(found)
    first, biggest, *_ = error.value.message.splitlines()
    assert first.startswith(f"code: {root} has more than 8 MiB when packed")
    assert biggest.endswith("8.6 MiB  a.bin")
    assert ".launchignore" in error.value.hint


def test_what_packs_well_is_no_matter_of_its_size(root):
    (root / "zeros.bin").write_bytes(bytes(50_000_000))
    assert len(archive(take_snapshot(root))) < 100_000


CONFIG = "".join(f"{section}:\n  a: 1\n" for section in ("settings", "model", "data", "optimizer", "runtime"))


@pytest.mark.parametrize("files", [
    {".launch-run.json": "{}"}, {".launch-run.json": "{}", "config.yaml": "a: 1\n"},
    {"config.yaml": CONFIG, "metrics.jsonl": ""}])
def test_the_trainers_output_folders_are_no_code_wherever_they_are(root, files):
    write(root, sub__outDOTd__adapter__weights="w", DOTlaunchignore="!*\n")
    for name, text in files.items():
        (root / "sub/out.d" / name).write_text(text)
    assert take_snapshot(root).files == (".launchignore", "a.py", "sub/b.py", "sub/deep/c.txt")


@pytest.mark.parametrize("files", [
    {"config.yaml": CONFIG}, {"metrics.jsonl": ""}, {"config.yaml": "model: x\n", "metrics.jsonl": ""}])
def test_a_folder_that_only_looks_like_an_output_is_code(root, files):
    for name, text in files.items():
        (root / "sub" / name).write_text(text)
    assert {f"sub/{name}" for name in files} <= set(take_snapshot(root).files)


def test_the_folder_itself_may_hold_an_output_because_it_was_named(root):
    (root / ".launch-run.json").write_text("{}")
    assert "a.py" in take_snapshot(root).files


def test_hard_links_are_files(root, tmp_path):
    os.link(root / "a.py", root / "b.py")
    with tarfile.open(fileobj=io.BytesIO(archive(take_snapshot(root)))) as tar:
        tar.extractall(tmp_path / "out", filter="data")
    assert (tmp_path / "out/b.py").read_text() == "a"


def test_a_name_that_is_no_unicode(root, tmp_path):
    """Such as an old archive leaves behind."""
    path = os.fsencode(root) + b"/caf\xe9.py"
    with open(path, "wb") as file:
        file.write(b"x")
    found = take_snapshot(root)
    copy_to(found, tmp_path / "copy")
    assert take_snapshot(tmp_path / "copy").digest == found.digest
    assert archive(found) == archive(take_snapshot(tmp_path / "copy"))


def test_a_very_deep_folder(root):
    deep = root
    for _ in range(1200):
        deep = deep / "d"
        deep.mkdir()
    (deep / "x.py").write_text("x")
    try:
        assert any(name.endswith("d/x.py") for name in take_snapshot(root).files)
    finally:
        subprocess.run(["rm", "-rf", root / "d"], check=True)  # pytest's own clean-up is recursive


@pytest.mark.parametrize("target", ["a.py", "sub"])
def test_what_cannot_be_read_is_named(root, target):
    as_other_user = os.geteuid() == 0
    for folder in [root, *root.parents]:
        if as_other_user and folder.stat().st_uid == 0 and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    (root / target).chmod(0)
    if as_other_user:  # whom no mode stops
        os.seteuid(65534)
    try:
        with pytest.raises(SpecError, match=f"code: {root}/{target}/? cannot be read: Permission denied") as error:
            take_snapshot(root)
    finally:
        if as_other_user:
            os.seteuid(0)
        (root / target).chmod(0o755)
    assert ".launchignore" in error.value.hint


@pytest.mark.parametrize("harm", ["change", "remove", "replace"])
@pytest.mark.parametrize("send", ["archive", "copy"])
def test_a_change_after_the_hash_stops_the_submit(root, tmp_path, harm, send):
    found = take_snapshot(root)
    if harm == "change":
        (root / "sub/b.py").write_text("other")
    else:
        (root / "sub/b.py").unlink()
    if harm == "replace":
        (root / "sub/b.py").symlink_to("../a.py")
    with pytest.raises(SpecError, match=f"code: {root}/sub/b.py was changed or removed while it was read"):
        archive(found) if send == "archive" else copy_to(found, tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


def test_a_folder_that_is_written_to_all_the_time(root, tmp_path):
    """Files come and go while it is hashed: each snapshot is one that can be copied, or says which file was changed."""
    stop, told = threading.Event(), []

    def write_all_the_time():
        while not stop.is_set():
            for number in range(20):
                (root / f"t{number}").write_text(str(number))
            for number in range(20):
                (root / f"t{number}").unlink()

    thread = threading.Thread(target=write_all_the_time)
    thread.start()
    try:
        for number in range(20):
            try:
                copy_to(take_snapshot(root), tmp_path / f"copy{number}")
            except SpecError as error:
                told.append(error.message)
    finally:
        stop.set()
        thread.join()
    assert [line for line in told if not re.search(r"/t\d+ was changed or removed while it was read$", line)] == []


def test_a_copy_that_cannot_be_written_says_so(root, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(LaunchError, match="the code cannot be copied: Not a directory"):
        copy_to(take_snapshot(root), tmp_path / "file/copy")


def test_a_full_disk_is_no_change_of_the_code(root, tmp_path, monkeypatch):
    def full(source, target, **more):
        raise OSError(errno.ENOSPC, "No space left on device", str(source), None, str(target))  # as sendfile's

    snapshot = take_snapshot(root)
    monkeypatch.setattr(shutil, "copy2", full)
    with pytest.raises(LaunchError, match="the code cannot be copied: No space left on device"):
        copy_to(snapshot, tmp_path / "copy")
