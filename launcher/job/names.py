"""Names of runs and of the objects made for them. Pure."""

import hashlib
import re

# A pod's host name is `<job>-<index>` and must be a DNS label of 63 characters (kubernetes-facts: 422 otherwise);
# `<slug>-<8 hex>` with a `-2` behind it and five digits of index stays below that.
MAX_SLUG = 36
RUN_ID_PATTERN = r"[a-z0-9]([-a-z0-9]{0,51}[a-z0-9])?"


def slug(name: str) -> str:
    """`name` as the start of a DNS-1123 label: lower case, letters, digits and dashes, 36 characters at most."""
    text = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")[:MAX_SLUG].strip("-")
    return text if re.match(r"[a-z]", text) else f"job-{text}".rstrip("-")[:MAX_SLUG]


def default_run_id(name: str, content: str) -> str:
    """The run id of a job: its name and a hash of everything that its render depends on."""
    return f"{slug(name)}-{hashlib.sha256(content.encode()).hexdigest()[:8]}"


def is_run_id(text: str) -> bool:
    """Whether `text` can be a run id: a DNS-1123 label of at most 53 characters."""
    return re.fullmatch(RUN_ID_PATTERN, text) is not None
