"""Reading job files: nothing but SpecError is ever raised, and what is read is what was written."""

import pytest
import yaml
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launcher.errors import SpecError
from launcher.job.load import load_profiles, read_document
from launcher.services.job_model import check_job, check_profile, job_model

RUN = "name: a\nrun: ['true']\n"

WORDS = [
    "name", "run", "train", "model", "data", "sources", "env", "resources", "nodes", "mounts", "path", "lora", "<<",
    "1", "null", "true", ".inf", "2020-13-45", "0o8", "1e400", "!!binary x", "!x y", "*a", "&a", "- ", "? ", ": ", "[",
    "]", "{", "}", "'", '"', "|", ">", "#", "%YAML 1.1\n---\n", "---\n", "\n", "\n  ", "\n    ", "\t", " ", "\0",
    "\x85", "上",
]
YAMLISH = st.lists(st.sampled_from(WORDS) | st.text(max_size=3), max_size=30).map("".join)
SCALAR = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
PLAIN = st.recursive(SCALAR, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(SCALAR, inner, max_size=3))
OVERRIDE = (st.sampled_from(["a.b=c", "=", "a=", "name=[", "run.0=x", "run.9=x", "run.-1=x", "env.²=1", "name.a=2"])
            | st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20))
KEYS = st.sampled_from([*job_model().model_fields, "nmae"])


def job(tmp_path, text, *overrides):
    path = tmp_path / "job.yaml"
    path.write_text(text, encoding="utf-8")
    return check_job(read_document(path, overrides))


def problems(tmp_path, text, *overrides):
    with pytest.raises(SpecError) as error:
        job(tmp_path, text, *overrides)
    return error.value.message.replace(f"{tmp_path}/", "").splitlines()


def only_spec_errors(path, overrides=()):
    """Whatever the file holds, it is a job, or there is a message."""
    message = "valid"
    try:
        check_job(read_document(path, overrides))
    except SpecError as error:
        message = error.message
    assert message.strip()


@settings(max_examples=120, deadline=None)
@given(YAMLISH)
@example("a: &a [*a]\n")
@example("name: &a {b: *a}\nrun: *a\n")
@example("[" * 3000)
@example("a: " * 40)
@example("? [a, b]\n: c\n")
@example("? {a: b}\n: c\n")
@example("!!set {a, b}\n")
@example("!!omap [a: b]\n")
@example("name: !!python/object:os.system x\n")
@example("name: " + "9" * 5000 + "\n")
@example("- <<: {a: 1}\n")
def test_any_text_gives_a_job_or_a_spec_error(tmp_path_factory, text):
    path = tmp_path_factory.mktemp("job") / "job.yaml"
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    only_spec_errors(path)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(KEYS, PLAIN, max_size=5))
def test_any_values_give_a_job_or_a_spec_error(tmp_path_factory, values):
    path = tmp_path_factory.mktemp("job") / "job.yaml"
    path.write_text(yaml.safe_dump(values, allow_unicode=True), encoding="utf-8")
    only_spec_errors(path)


@settings(max_examples=100, deadline=None)
@given(st.lists(OVERRIDE, max_size=3))
def test_any_override_gives_a_job_or_a_spec_error(tmp_path_factory, overrides):
    path = tmp_path_factory.mktemp("job") / "job.yaml"
    path.write_text(RUN)
    only_spec_errors(path, overrides)


def test_nested_aliases_take_no_exponential_time(tmp_path):
    """Ten levels of nine aliases each are a few hundred bytes and three thousand million values."""
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]" for n in range(1, 10)]
    assert problems(tmp_path, RUN + "\n".join(lines) + "\n")[0].startswith("job.yaml:3: a0: unknown key; known here: ")


def test_text_stays_text(tmp_path):
    """What YAML 1.1 readers misread."""
    read = job(tmp_path, RUN + "env: {A: no, B: 12:30:00, C: 0x, D: on, E: ~a, F: '1', G: 5}\n")
    assert read.env == {"A": "no", "B": "12:30:00", "C": "0x", "D": "on", "E": "~a", "F": "1", "G": "5"}


def test_numbers_as_people_write_them(tmp_path):
    sections = "{model: {path: m}, data: {sources: [{path: x}]}, optimizer: {lr: 2e-4, epochs: 3}}"
    read = job(tmp_path, f"name: a\ntrain: {sections}\n")
    assert (read.train.optimizer.lr, read.train.optimizer.epochs) == (2e-4, 3)


def test_a_file_of_an_editor_on_windows(tmp_path):
    assert job(tmp_path, "\ufeffname: a\r\nrun: [x]\r\n").run == ["x"]


def test_overrides(tmp_path):
    text = RUN + "mounts: [{path: /a, host_path: /b}]\n"
    read = job(tmp_path, text,
               "resources.nodes=4", "env.A=x=y", "mounts.0.read_only=true", "run=[echo, hi]", "image=a:1")
    assert (read.resources.nodes, read.env, read.image) == (4, {"A": "x=y"}, "a:1")
    assert (read.mounts[0].read_only, read.run) == (True, ["echo", "hi"])


def test_the_last_override_wins_and_null_takes_away(tmp_path):
    assert job(tmp_path, RUN + "image: a:1\n", "name=b", "name=c", "image=null").name == "c"


def test_a_replaced_section_is_reported_at_its_override(tmp_path):
    lines = problems(tmp_path, RUN + "resources: {nodes: 1}\n", "resources={nodes: 0}")
    assert lines == ["--set resources={nodes: 0}: resources.nodes: must be 1 or more, not 0"]


def test_an_alias_is_reported_where_it_was_defined(tmp_path):
    lines = problems(tmp_path, RUN + "mounts:\n  - &m {path: a, host_path: /b}\n  - *m\n")
    assert [line.partition(": mounts")[0] for line in lines] == ["job.yaml:4", "job.yaml:4"]


def test_a_long_value_is_cut(tmp_path):
    line = problems(tmp_path, f"name: a\nrun: {'x' * 500}\n")[0]
    assert len(line) < 700
    assert "..." in line


def test_an_unreadable_file(tmp_path):
    with pytest.raises(SpecError, match="is a folder"):
        read_document(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(SpecError, match="cannot be read: Not a directory"):
        read_document(tmp_path / "file/job.yaml")


def test_a_mistake_in_one_profile_spares_the_others(tmp_path):
    path = tmp_path / "clusters.yaml"
    path.write_text("good:\n  backend: slurm\nbad:\n  backend: sulrm\nodd: 3\n")
    profiles = load_profiles(path)
    assert check_profile(profiles["good"]).backend == "slurm"
    with pytest.raises(SpecError, match=r"clusters.yaml:4: bad.backend: must be kubernetes, slurm or local, not 'sulr"):
        check_profile(profiles["bad"])
    with pytest.raises(SpecError, match=r"clusters.yaml:5: odd: must be a profile, such as {backend: slurm}, not 3$"):
        check_profile(profiles["odd"])


def test_a_profile_with_a_key_twice(tmp_path):
    path = tmp_path / "clusters.yaml"
    path.write_text("a:\n  backend: slurm\n  qos: x\n  qos: y\nb:\n  backend: slurm\n")
    with pytest.raises(SpecError, match=r"clusters.yaml:4: a.qos: the key is given twice, first on line 3"):
        check_profile(load_profiles(path)["a"])
    assert check_profile(load_profiles(path)["b"]).backend == "slurm"
