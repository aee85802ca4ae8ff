"""Secrets: names in the job file, values from the submitter's environment, never in a render, a log or argv.

The guard looks for values where names belong. Its table is our own: detect-secrets takes 0.2 s to import, as long as
a whole render, and most of its plug-ins weigh entropy, which content hashes and image digests have as well. The shapes
are those that the issuers document (GitHub, AWS, GitLab, Slack, npm and PyPI for their scanning partners) and that
gitleaks' rules use for the others; minimum lengths are a little below the real ones.
"""

import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from launcher.errors import SpecError

Loc = tuple[str | int, ...]


@dataclass(frozen=True)
class Shape:
    """A kind of token: what people call it, how it begins, the variable it usually travels in, its pattern."""

    kind: str
    prefix: str
    variable: str
    pattern: str


SHAPES = (
    Shape("a Hugging Face token", "hf_", "HF_TOKEN", r"\bhf_[A-Za-z0-9]{20,}"),
    Shape("a Hugging Face organisation token", "api_org_", "HF_TOKEN", r"\bapi_org_[A-Za-z0-9]{20,}"),
    Shape("a GitHub token", "gh", "GITHUB_TOKEN", r"\bgh[pousr]_[A-Za-z0-9]{20,}"),
    Shape("a GitHub token", "github_pat_", "GITHUB_TOKEN", r"\bgithub_pat_[A-Za-z0-9_]{20,}"),
    Shape("a GitLab token", "gl", "GITLAB_TOKEN", r"\bgl(?:pat|dt|rt|ptt|soat)-[\w-]{16,}"),
    Shape("an API key", "sk-", "API_KEY", r"\bsk-(?:[A-Za-z0-9]{24,}|(?:proj|svcacct|admin|ant|or|lf)-[\w-]{16,})"),
    Shape("an AWS access key", "AKIA", "AWS_ACCESS_KEY_ID", r"\b(?:AKIA|ASIA|ABIA|ACCA)[A-Z0-9]{16}\b"),
    Shape("a Slack token", "xox", "SLACK_TOKEN", r"\bxox[abeoprs]-[A-Za-z0-9-]{10,}"),
    Shape("a Slack webhook", "https://hooks.slack.com/", "SLACK_WEBHOOK", r"hooks\.slack\.com/services/\w+/\w+/\w+"),
    Shape("a Google API key", "AIza", "GOOGLE_API_KEY", r"\bAIza[\w-]{30,}"),
    Shape("a Google OAuth token", "ya29.", "GOOGLE_TOKEN", r"\bya29\.[\w-]{20,}"),
    Shape("a JSON web token", "eyJ", "ACCESS_TOKEN", r"(?<![\w-])eyJ[\w-]{8,}\.eyJ[\w-]{8,}\.[\w-]*"),
    Shape("an npm token", "npm_", "NPM_TOKEN", r"\bnpm_[A-Za-z0-9]{30,}"),
    Shape("a PyPI token", "pypi-", "PYPI_TOKEN", r"\bpypi-[\w-]{50,}"),
    Shape("a Docker token", "dckr_", "DOCKER_TOKEN", r"\bdckr_(?:pat|oat)_[\w-]{20,}"),
    Shape("an NVIDIA API key", "nvapi-", "NGC_API_KEY", r"\bnvapi-[\w-]{40,}"),
    Shape("a Stripe key", "sk_", "STRIPE_API_KEY", r"\b[rs]k_(?:live|test)_[A-Za-z0-9]{16,}"),
    Shape("a Databricks token", "dapi", "DATABRICKS_TOKEN", r"\bdapi[0-9a-f]{32}\b"),
    Shape("a Replicate token", "r8_", "REPLICATE_API_TOKEN", r"\br8_[A-Za-z0-9]{30,}"),
    Shape("a Groq key", "gsk_", "GROQ_API_KEY", r"\bgsk_[A-Za-z0-9]{40,}"),
    # forty hex digits are a git commit as well, so the word has to stand before them
    Shape("a Weights & Biases key", "wandb", "WANDB_API_KEY", r"(?i:\bwandb)[^\n]{0,40}?\b[0-9a-f]{40}\b"),
    Shape("a private key", "-----BEGIN", "PRIVATE_KEY", r"-----BEGIN (?:[A-Z0-9]+ )*PRIVATE KEY(?: BLOCK)?-----"),
    Shape("a URL with a password", "://", "URL", r"\b[A-Za-z][A-Za-z0-9+.-]{1,20}://[^\s/:@]*:[^\s/@$<{*][^\s/@]*@"),
)
# The cheap look that nearly every text ends with; the shapes are tried on what it lets through.
_HINT = re.compile("hf_|api_org_|gh[pousr]_|github_pat_|gl[a-z]{2,4}-|sk-|A[KSBC][IC]A|xox|hooks|AIza|ya29|eyJ|npm_"
                   "|pypi-|dckr_|nvapi-|k_live|k_test|dapi|r8_|gsk_|(?i:wandb)|PRIVATE KEY|://")

_SECRET_NAME = re.compile(r"(TOKEN|API_?KEY|SECRET(_?KEY)?|ACCESS_KEY|PRIVATE_KEY|WANDB_KEY|PASSWORD|PASSWD|PASSPHRASE"
                          r"|._PWD|_PAT)$")
# Switches, small numbers, and the special tokens of a tokenizer, such as <|im_end|> and [UNUSED_TOKEN_145].
_HARMLESS = re.compile(r"(?i:true|false|none|null)|\d{1,6}|.{0,3}|<[^<>]*>|\[[A-Z0-9_]+\]", re.DOTALL)
# A name that says secret and its value inside a command: `--api-key=abc123`, `export HF_TOKEN='abc123'`.
# Bounded, and tried once a word: a job file may be long.
_ASSIGNED = re.compile(r"(?<![\w$-])(-{0,2}[A-Za-z][\w-]{0,63})=[\"']?(?![\"'$])([^\s\"';&|]{8,})")


def secret_values(names: Iterable[str], environ: Mapping[str, str]) -> dict[str, str]:
    """The values of `names`. Raises SpecError naming every one that is not set, or is no text."""
    missing = [name for name in names if not environ.get(name)]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise SpecError(f"secrets: {', '.join(missing)} {verb} not set in your environment",
                        f"export {missing[0]}=... in this shell, or take it out of the job file")
    values = {name: environ[name] for name in names}
    if odd := [name for name, value in values.items() if re.search("[\\udc80-\\udcff]", value)]:
        raise SpecError(f"secrets: {', '.join(odd)} must be UTF-8 text in your environment",
                        "encode it, with base64 for example, and decode it in the job")
    return values


def secrets_file(values: Mapping[str, str]) -> str:
    """A file that bash sources; it must be written with mode 0600."""
    return "".join(f"export {name}={shlex.quote(value)}\n" for name, value in values.items())


@dataclass(frozen=True)
class Leak:
    """A secret value where none belongs: the place, what it was taken for (never the value), a name for it."""

    loc: Loc
    found: str
    variable: str


class SecretFoundError(SpecError):
    """A job file, an argument or a profile holds a secret's value."""


def find_leaks(values: Any) -> Iterator[Leak]:
    """Every secret in plain YAML data: by its shape anywhere, by its variable's name in `env` and `run`."""
    pending: list[tuple[Loc, Any]] = [((), values)]
    seen: set[int] = set()
    while pending:
        loc, value = pending.pop()
        if not isinstance(value, dict | list):
            yield from filter(None, [_of_shape(loc, str(value)) or _of_name(loc, str(value), values)])
        elif id(value) not in seen:  # an alias counts where it was defined
            seen.add(id(value))
            if isinstance(value, dict):
                yield from filter(None, [_of_shape(loc, str(key)) for key in value])
            pairs = value.items() if isinstance(value, dict) else enumerate(value)
            pending += reversed([((*loc, step), item) for step, item in pairs])


def redact(text: str) -> str:
    """`text` with every token-shaped part replaced by its beginning: for messages."""
    if _HINT.search(text):
        for shape in SHAPES:
            text = re.sub(shape.pattern, f"{shape.prefix}…", text)
    return text


def says_secret(name: str) -> bool:
    """Whether a variable or an option of this name holds a secret: HF_TOKEN and --api-key, not MAX_TOKENS."""
    return _SECRET_NAME.search(_variable(name)) is not None


def token_shape(text: str) -> Shape | None:
    """The kind of token that `text` holds, if any."""
    if len(text) < 12 or not _HINT.search(text):
        return None
    return next((shape for shape in SHAPES if re.search(shape.pattern, text)), None)


def is_harmless(value: str) -> bool:
    """Whether a value tells nothing, whatever its variable is called."""
    return _HARMLESS.fullmatch(value) is not None


def assigned_secrets(text: str) -> list[str]:
    """Names that say secret and are given a literal value in a command or in the lines of an env file."""
    return [name for name, value in _ASSIGNED.findall(text) if says_secret(name) and _may_be_secret(value)]


def _of_shape(loc: Loc, text: str) -> Leak | None:
    shape = token_shape(text)
    if shape is None:
        return None
    named = len(loc) == 2 and loc[0] == "env" and says_secret(str(loc[1]))
    return Leak(loc, f"{shape.kind} ({shape.prefix}…)", str(loc[1]) if named else shape.variable)


def _of_pair(loc: Loc, text: str, root: Any) -> Leak | None:
    """`{name: HF_TOKEN, value: ...}`, as an item of a container's `env` has it; and lines of `setup`."""
    if loc[-1:] == ("value",) and not is_harmless(text):
        for step in loc[:-1]:
            root = root[step]
        name = str(root.get("name")) if isinstance(root, dict) else ""
        return Leak(loc, "a value for a name that says secret", name) if says_secret(name) else None
    if loc[-2:-1] == ("setup",) and (names := assigned_secrets(text)):
        return Leak(loc, f"a value for {names[0]}, which says secret", _variable(names[0]))
    return None


def _of_name(loc: Loc, text: str, root: Any) -> Leak | None:
    """An entry of `env`, or a word of `run`, whose variable or option says that it is a secret."""
    section, step = loc if len(loc) == 2 else (None, None)
    if section == "env" and text != "None" and says_secret(str(step)) and not is_harmless(text):
        return Leak(loc, "a value for a name that says secret", str(step))
    if leak := _of_pair(loc, text, root):
        return leak
    words = root.get("run") if isinstance(root, dict) else None
    if section == "run" and isinstance(words, list) and isinstance(step, int):
        names = assigned_secrets(text)
        before = str(words[step - 1]) if step else ""
        if before.startswith("-") and says_secret(before) and _may_be_secret(text):
            names.append(before)
        if names:
            return Leak(loc, f"a value for {names[0]}, which says secret", _variable(names[0]))
    return None


def _may_be_secret(word: str) -> bool:
    """Whether a word of a command can be a secret's value: letters with digits, no variable, no path."""
    mixed = re.search(r"\d", word) and re.search(r"[A-Za-z]", word)
    return len(word) >= 8 and bool(mixed) and word[0] not in "$<{/-" and not is_harmless(word)


def _variable(name: str) -> str:
    return name.strip("-").replace("-", "_").upper()
