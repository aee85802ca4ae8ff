"""As whom launch speaks to a cluster: a context of the user's kubeconfig or, in a pod without one, the pod's service
account. kubectl decides alike."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from launcher.errors import BackendError

IN_CLUSTER = "in-cluster"
POD_ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")  # where Kubernetes puts a pod's credentials
STREAMS = 1024


@dataclass(frozen=True)
class Session:
    """A client with its credentials as they were read. `stamps`: when each of their files was written."""

    api: Any
    client: Any
    stamps: dict[str, int | None]

    @property
    def is_outdated(self) -> bool:
        """Whether one of these files has been replaced."""
        return _stamps(self.stamps) != self.stamps


class Account(ABC):
    """Where credentials come from. `context` is what the cluster is called in records and messages."""

    context: str

    @property
    @abstractmethod
    def kubectl(self) -> str:
        """How to ask the same cluster by hand."""

    @abstractmethod
    def load(self, configuration: Any) -> list[str]:
        """Fill in a client's configuration. Returns the files that were read. Raises BackendError."""


@dataclass(frozen=True)
class KubeconfigAccount(Account):
    """A context of a kubeconfig; `path` may be several files, as in $KUBECONFIG."""

    path: str
    context: str

    @property
    def kubectl(self) -> str:
        """With the context."""
        return f"kubectl --context {self.context}"

    def load(self, configuration: Any) -> list[str]:
        """The client's own loader, exec plug-ins included."""
        import kubernetes.config

        try:
            kubernetes.config.load_kube_config(self.path, self.context, client_configuration=configuration)
        except kubernetes.config.ConfigException as error:
            raise BackendError(f"{self.path}: context {self.context!r} cannot be used: {error}") from error
        return self.path.split(os.pathsep)


@dataclass(frozen=True)
class PodAccount(Account):
    """The service account of the pod that launch runs in. `environ` has the API server's address."""

    environ: Mapping[str, str]
    context: str = IN_CLUSTER

    @property
    def kubectl(self) -> str:
        """Which finds the pod's account by itself."""
        return "kubectl"

    def load(self, configuration: Any) -> list[str]:
        """The token is replaced by Kubernetes every hour or so, in the same file."""
        import kubernetes.config
        from kubernetes.config.incluster_config import InClusterConfigLoader

        files = [str(POD_ACCOUNT / "token"), str(POD_ACCOUNT / "ca.crt")]
        try:
            InClusterConfigLoader(*files, environ=self.environ).load_and_set(configuration)
        except (kubernetes.config.ConfigException, OSError) as error:
            raise BackendError(f"the pod's service account cannot be used: {error}",
                               "give the pod one (automountServiceAccountToken), or set KUBECONFIG") from error
        return files


def account_of(environ: Mapping[str, str], context: str | None) -> Account:
    """The account for a context, or for the current one. Raises BackendError when there is none."""
    path = environ.get("KUBECONFIG") or str(Path(environ.get("HOME") or Path.home()) / ".kube/config")
    has_config = any(Path(name).exists() for name in path.split(os.pathsep))
    if context == IN_CLUSTER or (context is None and not has_config and "KUBERNETES_SERVICE_HOST" in environ):
        return PodAccount(environ)
    return KubeconfigAccount(path, _context_name(path, context))


def sign_in(account: Account) -> Session:
    """A session with the account's credentials as they are now. Raises BackendError."""
    import kubernetes.client
    import kubernetes.dynamic

    configuration = kubernetes.client.Configuration()
    configuration.retries = False  # callers know better when to ask again
    configuration.connection_pool_maxsize = STREAMS
    files = account.load(configuration)
    configuration.refresh_api_key_hook = None  # it would run an exec plug-in in every thread that asks
    files += [configuration.cert_file, configuration.key_file, configuration.ssl_ca_cert]
    api = kubernetes.client.ApiClient(configuration)
    client = kubernetes.dynamic.DynamicClient(api, discoverer=lambda client, cache_file: None)
    return Session(api, client, _stamps(filter(None, files)))


def _stamps(paths: Iterable[str]) -> dict[str, int | None]:
    """When each file was written; None for one that is not there."""
    return {path: _stamp(path) for path in paths}


def _stamp(path: str) -> int | None:
    try:
        return os.stat(path).st_mtime_ns
    except OSError:
        return None


def _context_name(path: str, wanted: str | None) -> str:
    import kubernetes.config

    hint = "name an existing file: export KUBECONFIG=FILE"
    try:
        known, current = kubernetes.config.list_kube_config_contexts(path)
    except kubernetes.config.ConfigException as error:
        if "current-context" in str(error) and wanted:
            return wanted
        raise BackendError(f"{path}: no cluster configuration: {error}", hint) from error
    except Exception as error:  # whatever a broken file makes the client's parser raise
        raise BackendError(f"{path}: cannot be read: {error}", hint) from error
    names = [entry["name"] for entry in known]
    if wanted and wanted not in names:
        raise BackendError(f"context: {wanted!r} is not in {path}, which has {', '.join(names) or 'none'}",
                           "see them: kubectl config get-contexts")
    return wanted or cast(str, current["name"])
