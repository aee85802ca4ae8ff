"""launch in a pod that has no kubeconfig: it is the pod's service account, over TLS, as every pod finds it."""

import asyncio
import ssl
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher.backends.kubernetes import session
from launcher.backends.kubernetes.client import ApiError, Kube
from launcher.errors import BackendError
from tests.fakes.kubernetes import FakeCluster

SELF_SIGNED = ("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes",
               "-days", "2", "-subj", "/CN=kubernetes", "-addext", "subjectAltName=IP:127.0.0.1")


async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Everything that comes."""
    while data := await reader.read(2**16):
        writer.write(data)
        await writer.drain()
    writer.close()


def serve_tls(target: int, context: ssl.SSLContext, ports: list[int], ready: threading.Event) -> None:
    """TLS in front of a local port, until the process ends."""
    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner = await asyncio.open_connection("127.0.0.1", target)
        await asyncio.gather(forward(reader, inner[1]), forward(inner[0], writer), return_exceptions=True)

    async def serve() -> None:
        server = await asyncio.start_server(connected, "127.0.0.1", 0, ssl=context)
        ports.append(server.sockets[0].getsockname()[1])
        ready.set()
        await server.serve_forever()

    asyncio.run(serve())


@pytest.fixture
def pod(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[FakeCluster, Path, dict[str, str]]]:
    """A cluster that wants the token `one`, the folder of a pod's credentials, and a pod's environment."""
    account = tmp_path / "serviceaccount"
    account.mkdir()
    subprocess.run([*SELF_SIGNED, "-keyout", tmp_path / "key", "-out", account / "ca.crt"], check=True,
                   capture_output=True)
    (account / "token").write_text("one")
    monkeypatch.setattr(session, "POD_ACCOUNT", account)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(account / "ca.crt", tmp_path / "key")
    with FakeCluster(tmp_path / "cluster", token="one") as cluster:
        ports: list[int] = []
        ready = threading.Event()
        threading.Thread(target=serve_tls, args=(int(cluster.url.rpartition(":")[2]), context, ports, ready),
                         daemon=True).start()
        assert ready.wait(30)
        yield cluster, account, {"HOME": str(tmp_path), "KUBERNETES_SERVICE_HOST": "127.0.0.1",
                                 "KUBERNETES_SERVICE_PORT": str(ports[0])}


def test_a_pod_without_kubeconfig_is_its_service_account(pod):
    _, account, environ = pod
    for context in (None, "in-cluster"):
        kube = Kube(environ, context)
        assert kube.context == "in-cluster"
        assert kube.list("Pod", "default") == []
    (account / "token").write_text("two")
    with pytest.raises(ApiError, match="rejected your credentials") as caught:
        kube.list("Pod", "default")
    assert caught.value.hint.endswith("see who you are: kubectl auth whoami")


def test_a_token_that_kubernetes_has_replaced_is_read_again(pod):
    cluster, account, environ = pod
    kube = Kube(environ, None)
    kube.list("Pod", "default")
    cluster.token = "two"
    (account / "token").write_text("two")
    assert kube.list("Pod", "default") == []


def test_a_kubeconfig_comes_before_the_service_account(pod, tmp_path):
    cluster, _, environ = pod
    assert Kube({**environ, "KUBECONFIG": str(cluster.kubeconfig)}, None).context != "in-cluster"
    assert Kube({**environ, "KUBECONFIG": str(cluster.kubeconfig)}, "in-cluster").context == "in-cluster"


def test_a_pod_without_an_account_is_told_so(pod):
    _, account, environ = pod
    (account / "token").unlink()
    with pytest.raises(BackendError, match="service account cannot be used") as caught:
        Kube(environ, None)
    assert "automountServiceAccountToken" in caught.value.hint


def test_outside_a_cluster_in_cluster_is_no_context(tmp_path):
    with pytest.raises(BackendError, match="service account cannot be used"):
        Kube({"HOME": str(tmp_path)}, "in-cluster")
