"""The forms in which a job names its image, and what a runtime makes of them. Pure.

`registry/team/name:1` and `docker://registry/team/name:1` are the same image everywhere. `docker://registry#team/name`
is enroot's own way to write a registry, for pyxis. Other schemes and files are apptainer's; pyxis has files, too.
"""

import re

from launcher.job.spec import ClusterProfile

SCHEMES = {"apptainer": ("docker", "oras", "library", "shub", "http", "https")}
DOCKER = "docker://"
_SCHEME = re.compile(r"([a-z]+)://")
_FILE = re.compile(r"\.{0,2}/.*|.*\.(sif|sqsh)")


def runtime_of(profile: ClusterProfile) -> str:
    """What runs the image: a container runtime, `kubernetes`, or `none`."""
    return "kubernetes" if profile.backend == "kubernetes" else profile.container_runtime


def is_file(image: str) -> bool:
    """Whether it is the path of a file or folder, and no reference."""
    return not _SCHEME.match(image) and _FILE.fullmatch(image) is not None


def image_for(image: str, runtime: str) -> str:
    """The image as the runtime is to have it: registries alone need no scheme."""
    return image if runtime in ("apptainer", "pyxis", "none") else image.removeprefix(DOCKER)


def image_problem(image: str, runtime: str) -> str | None:
    """Why the runtime cannot run it; None when it can, or when no image is run."""
    if runtime == "none":
        return None
    who = "back end kubernetes" if runtime == "kubernetes" else runtime
    scheme = _SCHEME.match(image)
    schemes = SCHEMES.get(runtime, ("docker",))
    if scheme and scheme[1] not in schemes:
        return f"{who} knows no {scheme[0]}, only {', '.join(f'{one}://' for one in schemes)}"
    if "#" in image and image.startswith(DOCKER) and runtime != "pyxis":
        return f"{who} writes a registry with /, not with #"
    if not is_file(image) or runtime == "apptainer" or (runtime == "pyxis" and image.endswith(".sqsh")):
        return None
    return f"{who} takes no image files" if runtime == "kubernetes" else f"{runtime} reads no such files"
