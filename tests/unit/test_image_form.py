"""Every form of an image with every runtime: what is rendered, or why it is refused."""

import pytest

from launcher.backends.hosts.image import image_word, import_lines, pull_lines
from tests.jobs import plan_of

HOST = "registry.example.com"
BARE = f"{HOST}/team/trainer:0.1"
IMPORTED = '"$IMAGE"'
REGISTRIES = "docker://, oras://, library://, shub://, http://, https://"

# form: what each runtime is given; (command, source) when it is imported first; why it is refused
APPTAINER = {
    BARE: ("apptainer pull", f"docker://{BARE}"),
    "ubuntu": ("apptainer pull", "docker://ubuntu"),
    f"docker://{BARE}": ("apptainer pull", f"docker://{BARE}"),
    f"oras://{BARE}": ("apptainer pull", f"oras://{BARE}"),
    "library://team/collection/trainer:0.1": ("apptainer pull", "library://team/collection/trainer:0.1"),
    "shub://team/trainer": ("apptainer pull", "shub://team/trainer"),
    f"https://{HOST}/trainer.sif?token=a&b": ("apptainer pull", f"'https://{HOST}/trainer.sif?token=a&b'"),
    f"http://{HOST}/trainer.sif": ("apptainer pull", f"http://{HOST}/trainer.sif"),
    "/images/trainer.sif": "/images/trainer.sif",
    "/images/sandbox": "/images/sandbox",
    "./trainer.img": "./trainer.img",
    "images/trainer.sif": "images/trainer.sif",
}
PYXIS = {
    BARE: ("enroot import --output", f"'docker://{HOST}#team/trainer:0.1'"),
    f"docker://{BARE}": ("enroot import --output", f"'docker://{HOST}#team/trainer:0.1'"),
    f"docker://{HOST}#team/trainer:0.1": ("enroot import --output", f"'docker://{HOST}#team/trainer:0.1'"),
    "docker://registry#team/trainer": ("enroot import --output", "'docker://registry#team/trainer'"),
    "docker://ubuntu": ("enroot import --output", "docker://ubuntu"),
    "/images/trainer.sqsh": "/images/trainer.sqsh",
    "images/trainer.sqsh": "./images/trainer.sqsh",
}
STORES = {BARE: BARE, f"docker://{BARE}": BARE, "docker://ubuntu": "ubuntu"}


def plan_with(image, runtime):
    on_slurm = {"backend": "slurm", "container_runtime": runtime}
    profile = {"backend": "kubernetes"} if runtime == "kubernetes" else on_slurm
    return plan_of({"name": "a", "run": ["true"], "image": image}, profile, run_id="a-1")


def image_problem(image, runtime):
    return plan_with(image, runtime).profile.image_problem(image)


TABLE = [(runtime, form, wanted) for runtime, forms in
         (("apptainer", APPTAINER), ("pyxis", PYXIS), ("podman", STORES), ("docker", STORES), ("kubernetes", STORES))
         for form, wanted in forms.items()]


@pytest.mark.parametrize(("runtime", "form", "wanted"), TABLE)
def test_every_form_that_a_runtime_takes(runtime, form, wanted):
    assert image_problem(form, runtime) is None
    plan = plan_with(form, runtime)
    if runtime == "kubernetes":
        assert plan.image == wanted
    elif isinstance(wanted, tuple):
        command, source = wanted
        assert image_word(plan) == IMPORTED
        assert [line.strip() for line in import_lines(plan) if f'{command} "$IMAGE.part" {source} && ' in line]
    else:
        assert (image_word(plan), import_lines(plan)) == (wanted, [])
    if runtime in ("podman", "docker"):
        assert f"  {runtime} image inspect {wanted} >/dev/null" in "\n".join(pull_lines(plan, runtime))


@pytest.mark.parametrize(("runtime", "form", "why"), [
    *((runtime, f"{scheme}://team/trainer", f"{who} knows no {scheme}://, only docker://")
      for runtime, who in (("podman", "podman"), ("docker", "docker"), ("pyxis", "pyxis"),
                           ("kubernetes", "back end kubernetes"))
      for scheme in ("oras", "library", "shub", "http", "https")),
    ("apptainer", "dockerd://trainer", f"apptainer knows no dockerd://, only {REGISTRIES}"),
    ("apptainer", f"docker://{HOST}#team/trainer", "apptainer writes a registry with /, not with #"),
    ("podman", f"docker://{HOST}#team/trainer", "podman writes a registry with /, not with #"),
    ("kubernetes", "/images/trainer.sif", "back end kubernetes takes no image files"),
    ("kubernetes", "./trainer.sif", "back end kubernetes takes no image files"),
    ("docker", "images/trainer.sif", "docker reads no such files"),
    ("pyxis", "images/trainer.sif", "pyxis reads no such files"),
])
def test_a_form_that_a_runtime_does_not_take_is_refused_by_name(runtime, form, why):
    assert image_problem(form, runtime) == why


def test_where_no_image_is_run_none_is_refused():
    assert image_problem("oras://team/trainer", "none") is None


@pytest.mark.parametrize("runtime", ["apptainer", "pyxis"])
def test_two_ways_to_write_an_image_share_its_file(runtime):
    def file_of(image):
        return next(line for line in import_lines(plan_with(image, runtime)) if "export IMAGE=" in line)

    assert file_of(BARE) == file_of(f"docker://{BARE}")
    if runtime == "apptainer":
        assert file_of(BARE) != file_of(f"oras://{BARE}")
