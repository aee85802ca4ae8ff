"""Kubernetes: a Job or JobSet for each run."""

from launcher.backends.registry import BackendType

BACKEND = BackendType(
    profile="launcher.backends.kubernetes.profile:KubernetesProfile",
    render="launcher.backends.kubernetes.objects:render_kubernetes",
    adapter="launcher.backends.kubernetes.backend:KubernetesBackend",
)
