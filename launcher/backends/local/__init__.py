"""This machine: a detached script for each run."""

from launcher.backends.registry import BackendType

BACKEND = BackendType(
    profile="launcher.backends.local.profile:LocalProfile",
    render="launcher.backends.local.script:render_local",
    adapter="launcher.backends.local.backend:LocalBackend",
)
