"""Slurm: a batch job for each run."""

from launcher.backends.registry import BackendType

BACKEND = BackendType(
    profile="launcher.backends.slurm.profile:SlurmProfile",
    render="launcher.backends.slurm.script:render_slurm",
    adapter="launcher.backends.slurm.backend:SlurmBackend",
)
