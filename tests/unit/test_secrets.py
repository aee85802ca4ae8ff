"""Secrets: all that are missing are named, and bash reads back any value."""

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.errors import SpecError
from launcher.secrets import secret_values, secrets_file


def test_every_missing_secret_is_named():
    with pytest.raises(SpecError, match="secrets: got A, C, allowed: variables that are set here") as error:
        secret_values(["A", "B", "C"], {"B": "x", "C": ""})
    assert error.value.hint.startswith("export A=...")


def test_only_the_named_ones_are_taken():
    assert secret_values(["A"], {"A": "x", "B": "y"}) == {"A": "x"}


@settings(max_examples=20, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_bash_reads_back_the_value(value):
    script = secrets_file({"TOKEN": value}) + 'printf "%s." "$TOKEN"\n'
    done = subprocess.run(["bash"], input=script.encode(), capture_output=True, check=True)
    assert done.stdout == f"{value}.".encode()
