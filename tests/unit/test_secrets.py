"""Secrets: all that are missing are named, bash reads back any value, and the guard knows values from names."""

import re
import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from launcher.errors import SpecError
from launcher.job.secrets import SHAPES, find_leaks, redact, secret_values, secrets_file


def test_every_missing_secret_is_named():
    with pytest.raises(SpecError, match="secrets: A, C are not set in your environment") as error:
        secret_values(["A", "B", "C"], {"B": "x", "C": ""})
    assert error.value.hint.startswith("export A=...")


def test_a_value_that_is_no_text_is_named():
    with pytest.raises(SpecError, match="secrets: B must be UTF-8 text in your environment"):
        secret_values(["A", "B"], {"A": "x", "B": "\udcff"})


def test_only_the_named_ones_are_taken():
    assert secret_values(["A"], {"A": "x", "B": "y"}) == {"A": "x"}


@settings(max_examples=20, deadline=None)
@given(st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"])))
def test_bash_reads_back_the_value(value):
    script = secrets_file({"TOKEN": value}) + 'printf "%s." "$TOKEN"\n'
    done = subprocess.run(["bash"], input=script.encode(), capture_output=True, check=True)
    assert done.stdout == f"{value}.".encode()


def places(values):
    """Where the guard finds something, and the name it proposes."""
    return {".".join(map(str, leak.loc)): leak.variable for leak in find_leaks(values)}


A36 = "0a1B" * 9
# Made up by their issuers' rules, or taken from their documents.
TOKENS = [
    "hf_" + A36[:34], f"ghp_{A36}", f"gho_{A36}", f"github_pat_{A36[:22]}_{A36}", f"glpat-{A36[:20]}", "sk-" + A36 * 2,
    f"sk-proj-{A36}_{A36}", f"sk-ant-api03-{A36}-{A36}", "AKIAIOSFODNN7EXAMPLE", "ASIAIOSFODNN7EXAMPLE",
    f"xoxb-1234567890-{A36}", f"xoxp-1234567890-{A36}", "AIzaSy" + A36[:33], f"npm_{A36}", f"pypi-AgEI{A36 * 2}",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.dozjgNryP4J3jVmNHl0w5N_XgL0n3I9PlFUP0THsR8U",
    f"nvapi-{A36}{A36}", f"dckr_pat_{A36[:27]}", "sk_live_" + A36[:24], "dapi" + "0123456789abcdef" * 2, f"r8_{A36}",
    f"gsk_{A36}{A36[:16]}", f"ya29.{A36}", f"api_org_{A36[:34]}", "https://hooks.slack.com/services/T000/B000/XXXXXXXX",
    "wandb login 0123456789abcdef0123456789abcdef01234567", "-----BEGIN OPENSSH PRIVATE KEY-----\nb3BlbnNzaC1rZXk=",
    "-----BEGIN PRIVATE KEY-----", "https://me:pa55word@example.com/repo.git", "postgresql://u:p@db/x",
]


@pytest.mark.parametrize("token", TOKENS)
@pytest.mark.parametrize("text", ["{}", "x {} y", "--flag={}", "a\n'{}'\n"])
def test_a_token_is_found_wherever_it_stands_and_is_not_repeated(token, text):
    value = text.format(token)
    values = {"a": [{"b": value}], "env": {"X": value}, value: 1, "run": ["x", value]}
    leaks = list(find_leaks(values))
    assert {leak.loc for leak in leaks} == {(), ("a", 0, "b"), ("env", "X"), ("run", 1)}
    assert not any(token in leak.found or token in leak.variable for leak in leaks)
    assert token not in redact(value)


def test_every_shape_has_an_example():
    assert [shape.kind for shape in SHAPES if not any(re.search(shape.pattern, token) for token in TOKENS)] == []


@pytest.mark.parametrize("text", [
    "sha256:" + "0123456789abcdef" * 4, "registry.example.com/team/trainer@sha256:" + "ab" * 32,
    "0123456789abcdef0123456789abcdef01234567", "internlm/internlm2-chat-7b",
    "/models/hf_cache/models--internlm", "hf_models", "internlm2-7b-2d711642",
    "What does sk-learn do, and is scikit-learn-contrib-packages-of-2026 a risk-free-installation-of-everything?",
    "Explain https://example.com:8080/a@b and why ssh://git@github.com/org/repo works.", "http://[::1]:80/", "a: b@c",
    "Write to me at someone@example.com; my password is none of your business.", "eyJ is how a JSON web token begins.",
    "Why does -----BEGIN CERTIFICATE----- differ from a private key?", "ghp_ is the prefix of GitHub's tokens",
    "https://user:$TOKEN@example.com", "https://user:${TOKEN}@example.com", "https://user:<password>@example.com",
    "上海的天气怎么样？", "AKIA", "npm_config_registry", "torch.bfloat16", "xox", "glpat", "dapi", "a" * 5000,
])
def test_what_is_no_token(text):
    assert places({"train": {"sample_prompts": [text]}, "env": {"X": text}, "run": ["echo", text]}) == {}
    assert redact(text) == text


def test_a_name_that_says_secret_may_have_no_value():
    env = dict.fromkeys([
        "HF_TOKEN", "WANDB_API_KEY", "OPENAI_APIKEY", "AWS_SECRET_ACCESS_KEY", "DB_PASSWORD", "CLIENT_SECRET", "TOKEN",
        "SECRET_KEY", "GITHUB_PAT", "MYSQL_PWD", "hf_token", "SSH_PASSPHRASE", "WANDB_KEY"], "some value")
    assert places({"env": env}) == {f"env.{name}": name for name in env}
    assert places({"env": {"HF_TOKEN": "$HF_TOKEN"}}) == {"env.HF_TOKEN": "HF_TOKEN"}


def test_harmless_names_and_values():
    assert places({"env": {
        "TOKENIZERS_PARALLELISM": "true", "MAX_TOKENS": "some value", "PWD": "/workspace", "OLDPWD": "/workspace",
        "HF_TOKEN": "", "API_KEY": None, "PAD_TOKEN": "<pad>", "EOS_TOKEN": "<|im_end|>",
        "STOP_TOKEN": "[UNUSED_TOKEN_145]", "USE_TOKEN": "false", "ADD_BOS_TOKEN": "1", "HF_TOKEN_PATH": "/run/token",
        "MONKEY": "banana", "KEYBOARD": "de", "COMPAT": "some value", "SECRETARY": "some value",
    }}) == {}


def test_values_in_a_command():
    assert places({"run": ["bash", "-c", "export HF_TOKEN=abc12345678; python x.py"]}) == {"run.2": "HF_TOKEN"}
    assert places({"run": ["x", "--api-key=abc12345678"]}) == {"run.1": "API_KEY"}
    assert places({"run": ["x", "--api-key", "abc12345678"]}) == {"run.2": "API_KEY"}
    for words in (["x", "--api-key", "$KEY12345678"], ["x", "--token=$TOKEN"], ["bash", "-c", 'HF_TOKEN="$OTHER" x'],
                  ["x", "--eos-token", "</s>"], ["x", "--pad-token=<|end_of_text|>"], ["x", "--token", "--more-args1"],
                  ["x", "--token-file=/run/secrets/hf1"], ["x", "--password-file", "abc12345678"],
                  ["x", "token", "abc12345678"]):
        assert places({"run": words}) == {}, words


@settings(max_examples=100, deadline=None)
@given(st.recursive(st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
                    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
                        st.text() | st.sampled_from(["env", "run", "TOKEN"]) | st.integers(), inner, max_size=3)))
def test_any_values_can_be_looked_at(values):
    assert isinstance(list(find_leaks(values)), list)


def test_values_that_hold_themselves_are_looked_at_once():
    values = {"a": ["hf_" + A36[:34]]}
    values["b"] = values
    values["a"].append(values["a"])
    assert places(values) == {"a.0": "HF_TOKEN"}


def test_a_long_text_takes_no_time():
    """Each pattern is linear: 300,000 characters of what nearly matches."""
    nearly = ["hf_", "-----BEGIN A ", "a:b", "http://a:", "wandb ", "eyJaaaaaaaa ", "A=", "x-", "eyJ-", "a_", "token=",
              "--", "A A", "-----BEGIN " + "A " * 50, "http://a.", "sk-a-", "xox", "wandb a1", "a1"]
    for near in nearly:
        assert places({"env": {"X": near * (300_000 // len(near))}, "run": [near * (300_000 // len(near))]}) == {}
