"""The forms in which a job names its image. Pure.

`registry/team/name:1` and `docker://registry/team/name:1` are the same image everywhere.
"""

import re

DOCKER = "docker://"
_SCHEME = re.compile(r"([a-z]+)://")
_FILE = re.compile(r"\.{0,2}/.*|.*\.(sif|sqsh)")


def scheme_of(image: str) -> str | None:
    """`docker` of `docker://name`; None when it has none."""
    match = _SCHEME.match(image)
    return match[1] if match else None


def is_file(image: str) -> bool:
    """Whether it is the path of a file or folder, and no reference."""
    return not _SCHEME.match(image) and _FILE.fullmatch(image) is not None


def registry_image(image: str) -> str:
    """The image for those that pull from registries alone, and want no scheme."""
    return image.removeprefix(DOCKER)


def registry_problem(image: str, who: str) -> str | None:
    """Why `who`, which pulls from registries alone, cannot run it; None when it can."""
    if why := scheme_problem(image, who, ("docker",)) or hash_problem(image, who):
        return why
    return f"{who} takes no image files" if is_file(image) else None


def scheme_problem(image: str, who: str, schemes: tuple[str, ...]) -> str | None:
    """Why `who` cannot reach it."""
    scheme = scheme_of(image)
    if scheme is None or scheme in schemes:
        return None
    return f"{who} knows no {scheme}://, only {', '.join(f'{one}://' for one in schemes)}"


def hash_problem(image: str, who: str) -> str | None:
    """`docker://registry#team/name` is enroot's own way to write a registry."""
    return f"{who} writes a registry with /, not with #" if "#" in image and image.startswith(DOCKER) else None
