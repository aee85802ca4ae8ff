"""The job's image: which file or reference a runtime is given, and how it comes to the nodes. Pure.

apptainer and pyxis start an image from a file. They would make that file on every node at every start (pyxis#108), so
it is imported once, by the first job that needs it, to the file system that the nodes share; a file that the user names
is taken as it is. podman and docker have a store on every node, where it is pulled once. All of it is behind locks that
the kernel gives back when their holder is killed.
"""

import hashlib
import re
import shlex

from launcher.backends.hosts.profile import HostProfile
from launcher.job.image import DOCKER, is_file
from launcher.job.plan import Plan

_SUFFIXES = {"apptainer": ".sif", "pyxis": ".sqsh"}


def image_word(plan: Plan[HostProfile]) -> str:
    """What the runtime is given, as a word of bash."""
    if needs_import(plan):
        return '"$IMAGE"'
    is_relative = plan.profile.container_runtime == "pyxis" and not plan.image.startswith("/")
    return shlex.quote(f"./{plan.image}" if is_relative else plan.image)  # pyxis knows a path by its slash


def needs_import(plan: Plan[HostProfile]) -> bool:
    """Whether the runtime wants a file and the image is not one."""
    return plan.profile.container_runtime in _SUFFIXES and not is_file(plan.image)


def import_lines(plan: Plan[HostProfile]) -> list[str]:
    """Bash lines that set IMAGE, and define `import_image`, which makes that file unless it is there. To be run in a
    subshell: the lock is held until it ends. A killed import leaves a part that the next one removes."""
    if not needs_import(plan):
        return []
    pull = {"apptainer": f'apptainer pull "$IMAGE.part" {shlex.quote(apptainer_reference(plan.image))}',
            "pyxis": f'enroot import --output "$IMAGE.part" {shlex.quote(enroot_reference(plan.image))}'}
    return [
        'IMAGES="${RUN_DIR%/*/*}/images"  # kept for other jobs; a file of it may be removed at any time',
        f'export IMAGE="$IMAGES/{_file_name(plan)}"',
        "import_image() {  # once for all nodes and jobs: the others wait, and find it",
        '  if [ -s "$IMAGE" ]; then return 0; fi',
        '  mkdir -p "$IMAGES" && exec 9>"$IMAGE.lock" && flock 9 || return',
        '  if [ -s "$IMAGE" ]; then return 0; fi',
        '  rm -f "$IMAGE.part"',
        '  echo "launch: importing the image to $IMAGE"',
        f'  {pull[plan.profile.container_runtime]} && mv "$IMAGE.part" "$IMAGE" && return 0',
        "  local code=$?",
        '  rm -f "$IMAGE.part"',
        '  echo "launch: no image, exit code $code; $(df --output=avail -h "$IMAGES" | tail -n 1) left in $IMAGES" >&2',
        '  return "$code"',
        "}",
    ]


def pull_lines(plan: Plan[HostProfile], runtime: str) -> list[str]:
    """Bash lines that pull the image to this node unless it is there; they leave the exit code in `code`."""
    image = shlex.quote(plan.image)
    lock = f'"${{RUN_DIR%/*/*}}/images/{_file_name(plan)}.${{SLURMD_NODENAME:-local}}.lock"'
    return [
        f"if ! {runtime} image inspect {image} >/dev/null 2>&1; then",
        '  mkdir -p "${RUN_DIR%/*/*}/images"',
        "  (",
        "    flock 9",
        f"    {runtime} image inspect {image} >/dev/null 2>&1 || {runtime} pull {image} >/dev/null",
        f"  ) 9>{lock} || code=$?",
        "fi",
    ]


def apptainer_reference(image: str) -> str:
    """As it is when it names where it comes from, else from a registry."""
    return image if "://" in image else f"{DOCKER}{image}"


def enroot_reference(image: str) -> str:
    """`docker://registry#image`, enroot's way to write a registry; as it is when it is written so already."""
    image = image.removeprefix(DOCKER)
    registry, slash, rest = image.partition("/")
    is_host = slash and ("." in registry or ":" in registry or registry == "localhost")
    return f"{DOCKER}{registry}#{rest}" if is_host and "#" not in image else f"{DOCKER}{image}"


def _file_name(plan: Plan[HostProfile]) -> str:
    """Readable, and different for every image, not for every way to write it."""
    image = plan.image.removeprefix(DOCKER)
    readable = re.sub(r"[^A-Za-z0-9.]+", "-", image.rpartition("/")[2])[:60]
    digest = hashlib.sha256(image.encode()).hexdigest()[:12]
    return f"{readable}-{digest}{_SUFFIXES.get(plan.profile.container_runtime, '')}"
