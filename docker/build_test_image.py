"""Build the trainer's image for tests on a plain Debian machine: a CPU base by debootstrap, then the one Dockerfile.

Prints the image's name alone on stdout. The name carries a hash of everything that goes in, so a second call with
nothing changed returns at once. Needs root, podman and debootstrap; takes some minutes the first time.
Packages come from where this machine's pip takes them: its configuration and the local folders that it names are
mounted into the build, and nothing of them stays in the image.
"""

import ast
import hashlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SUITE = "bookworm"
PACKAGES = "python3,python3-venv,python3-dev,g++,ca-certificates"
INPUTS = ("docker/Dockerfile", ".dockerignore", "LICENSE", "README.md", "constraints.txt", "pyproject.toml",
          "launcher", "trainer", "examples")
CERTIFICATES = Path("/etc/ssl/certs")


def main() -> int:
    """Build what is missing; returns the exit code."""
    name = f"localhost/launch-trainer:test-{inputs_hash(ROOT)}"
    if not exists(name):
        base = base_image()
        with tempfile.TemporaryDirectory() as folder:
            mounts = pip_mounts(Path(folder))
            run(["podman", "build", "--tag", name, "--file", str(ROOT / "docker/Dockerfile"),
                 "--build-arg", f"BASE={base}", "--build-arg", "PREBUILD_CPU_OP=1",
                 *(f"--volume={mount}:ro" for mount in mounts), str(ROOT)])  # fmt: skip
    sys.stdout.write(f"{name}\n")
    return 0


def inputs_hash(root: Path) -> str:
    """A hash of all files that the build sees."""
    digest = hashlib.sha256(f"{SUITE} {PACKAGES}".encode())
    for path in sorted(files(root / name for name in INPUTS)):
        digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def files(paths: Iterable[Path]) -> Iterable[Path]:
    """The files at and below `paths`, without what Python and runs leave behind."""
    for path in paths:
        found = path.rglob("*") if path.is_dir() else [path]
        yield from (file for file in found if file.is_file() and not {"__pycache__", "outputs"} & set(file.parts))


def base_image() -> str:
    """A Debian with Python and a compiler, made once."""
    name = f"localhost/launch-test-base:{SUITE}-{hashlib.sha256(PACKAGES.encode()).hexdigest()[:8]}"
    if not exists(name):
        with tempfile.TemporaryDirectory() as folder:
            run(["debootstrap", "--variant=minbase", f"--include={PACKAGES}", SUITE, f"{folder}/root"])
            run(["tar", "--create", "--file", f"{folder}/base.tar", "--directory", f"{folder}/root", "."])
            run(["podman", "import", f"{folder}/base.tar", name])
    return name


def pip_mounts(folder: Path) -> list[str]:
    """What the build mounts so that pip finds the packages that this machine finds: `source:target`."""
    command = [sys.executable, "-m", "pip", "config", "list"]
    settings = {}
    for line in subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines():
        key, _, value = line.partition("=")
        settings[key.rpartition(".")[2]] = ast.literal_eval(value).split()
    lines = [f"{key} = {' '.join(words)}" for key, words in settings.items()]
    (folder / "pip.conf").write_text("\n".join(["[global]", *lines, ""]))
    mounts = {f"{folder}/pip.conf:/etc/pip.conf"}
    if CERTIFICATES.is_dir():
        mounts.add(f"{CERTIFICATES}:{CERTIFICATES}")
    for word in (word for words in settings.values() for word in words):
        path = Path(word.removeprefix("file://"))
        # an index links to files beside it
        path = path.parent if word.startswith("file://") else path
        if path.is_absolute() and path.exists() and CERTIFICATES not in path.parents:
            mounts.add(f"{path}:{path}")
    return sorted(mounts)


def exists(image: str) -> bool:
    """Whether podman has this image."""
    return subprocess.run(["podman", "image", "exists", image], check=False).returncode == 0


def run(command: list[str]) -> None:
    """Run a step; what it prints goes to stderr."""
    environ = {**os.environ, "LC_ALL": "C.UTF-8"}
    subprocess.run(command, check=True, stdout=sys.stderr, env=environ)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except subprocess.CalledProcessError as error:
        sys.exit(f"error: {' '.join(error.cmd[:2])} exited with {error.returncode}; its words are above")
    except FileNotFoundError as error:
        sys.exit(f"error: {error.filename}: no such command\nhint:  apt-get install podman debootstrap")
