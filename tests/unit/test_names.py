"""Names of runs: DNS-1123, short enough for what is built on them, the same every time."""

import re

from hypothesis import given
from hypothesis import strategies as st

from launcher.job.names import default_run_id, is_run_id, slug

LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")


@given(st.text(min_size=1, max_size=300), st.text())
def test_run_id_is_a_dns_label_for_any_name(name, content):
    run_id = default_run_id(name, content)
    assert LABEL.fullmatch(run_id)
    assert is_run_id(run_id)
    # `-999` for a run that is taken, `-99999` for a pod's index, and the whole is still a host name
    assert len(f"{run_id}-999-99999") <= 63


@given(st.text(min_size=1, max_size=300))
def test_slug_is_stable_under_itself(name):
    assert slug(slug(name)) == slug(name)
    assert len(slug(name)) <= 36


def test_run_id_depends_on_name_and_content_only():
    assert default_run_id("InternLM2 7B", "x") == default_run_id("InternLM2 7B", "x") == "internlm2-7b-2d711642"
    assert default_run_id("a", "x") != default_run_id("a", "y")


def test_slug_of_awkward_names():
    assert slug("上海") == "job"
    assert slug("7b") == "job-7b"
    assert slug("--A__b..C--") == "a-b-c"


def test_run_ids_that_are_refused():
    for text in ("", "-a", "a-", "A", "a_b", "a.b", "x" * 54, "a\n", "../x"):
        assert not is_run_id(text), text
    assert is_run_id("x" * 53)
