"""A stateful Kubernetes API server for tests that really runs the pods' commands."""

from .cluster import FakeCluster

__all__ = ["FakeCluster"]
