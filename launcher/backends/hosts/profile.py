"""What the profiles of back ends have that run a job's script on hosts, bare or in a container. No I/O."""

from collections.abc import Iterable
from typing import Literal, Self

from pydantic import Field, model_validator

from launcher.job.image import hash_problem, is_file, registry_image, scheme_problem
from launcher.job.profile import Profile
from launcher.job.spec import Mount

APPTAINER_SCHEMES = ("docker", "oras", "library", "shub", "http", "https")


class HostProfile(Profile):
    """A place where nothing runs containers unless it is told what does."""

    container_runtime: Literal["none", "pyxis", "apptainer", "podman", "docker"] = Field(
        "none", description="What runs the image; `none` runs on the bare node.")
    container_args: list[str] = Field([], description="More arguments for the runtime; with pyxis, for srun.")

    @model_validator(mode="after")
    def _arguments_of_a_runtime(self) -> Self:
        if self.container_args and self.container_runtime == "none":
            raise ValueError("container_args: needs a container_runtime, and there is none")
        return self

    @property
    def uses_image(self) -> bool:
        """With a runtime."""
        return self.container_runtime != "none"

    def kept(self, mounts: Iterable[Mount], job_dir: str) -> list[str] | None:
        """More arguments may mount anything."""
        return None if self.container_args else super().kept(mounts, job_dir)

    def image_for(self, image: str) -> str:
        """apptainer and pyxis read more than registries."""
        return image if self.container_runtime in ("apptainer", "pyxis", "none") else registry_image(image)

    def image_problem(self, image: str) -> str | None:
        """Each runtime has schemes and files of its own; enroot, behind pyxis, writes a registry with `#`."""
        runtime = self.container_runtime
        if not self.uses_image:
            return None
        schemes = APPTAINER_SCHEMES if runtime == "apptainer" else ("docker",)
        why = scheme_problem(image, runtime, schemes) or (hash_problem(image, runtime) if runtime != "pyxis" else None)
        if why or not is_file(image) or runtime == "apptainer" or (runtime == "pyxis" and image.endswith(".sqsh")):
            return why
        return f"{runtime} reads no such files"
