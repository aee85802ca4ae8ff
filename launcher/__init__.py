"""launch: one job.yaml, run here, on Slurm or on Kubernetes. Imports nothing heavy; see docs/architecture.md."""

__version__ = "0.1.0"
