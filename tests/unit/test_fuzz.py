"""The fuzzer of bench/clusters: its cases come again from their seed, and it sees what it looks for."""

import importlib.util
from pathlib import Path

import pytest

SPEC = importlib.util.spec_from_file_location("fuzz", Path(__file__).parents[2] / "bench/clusters/fuzz.py")


@pytest.fixture(scope="module")
def fuzz():
    """The script as a module."""
    import sys

    module = importlib.util.module_from_spec(SPEC)
    sys.modules["fuzz"] = module
    SPEC.loader.exec_module(module)
    return module


def test_a_case_comes_again_from_its_seed(fuzz):
    cases = [fuzz.make_case(7, number) for number in range(200)]
    assert cases == [fuzz.make_case(7, number) for number in range(200)]
    assert len({case.content for case in cases}) > 150


@pytest.mark.parametrize(("backend", "code", "out", "err", "kinds"), [
    ("local", None, "", "", ["hang"]),
    ("local", 1, "", "error: a defect in launch: KeyError: 'x'\n", ["traceback"]),
    ("local", 2, "", "Traceback (most recent call last):\n", ["traceback"]),
    ("local", 139, "", "", ["bad exit"]),
    ("local", 2, "", "", ["bad message"]),
    ("local", 2, "half a render", "error: x\n", ["bad message"]),
    ("local", 2, "", "x.py:3: SomeWarning: y\nerror: x\n", ["bad message"]),
    ("local", 2, "", "error: x\nhint:  y\n", ["refused"]),
    ("slurm", 0, "if", "", ["invalid render"]),
    ("slurm", 0, "true\n", "", ["rendered", "checked render"]),
    ("kubernetes", 0, "apiVersion: v1\nkind: Service\nmetadata: {name: a, x: b}\n", "", ["invalid render"]),
    ("kubernetes", 0, "a: [", "", ["invalid render"]),
    ("kubernetes", 0, "apiVersion: v1\nkind: Service\nmetadata: {name: a}\n", "", ["rendered", "checked render"]),
])
def test_what_is_judged_how(fuzz, backend, code, out, err, kinds):
    assert [kind for kind, _ in fuzz.judged(fuzz.Case(0, b"", (), backend), code, out, err)] == kinds


def test_a_few_cases_through_the_function(fuzz, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for number in range(40):
        outcome = fuzz.judged(case := fuzz.make_case(11, number), *fuzz.run_inside(case))
        assert [text for _, text in outcome if text] == [], case
