"""Credentials that expire while a cluster is asked by many threads, and files of them that are replaced."""

import os
import threading

import pytest
import yaml

from launcher.backends.kubernetes.client import ApiError, Kube
from tests.fakes.kubernetes import FakeCluster

THREADS = 40
PLUG_IN = """#!/bin/bash
echo x >>{folder}/runs
printf '{{"apiVersion":"client.authentication.k8s.io/v1","kind":"ExecCredential","status":{{"token":"%s"}}}}' \
  "$(cat {folder}/token)"
"""


@pytest.fixture
def signed_in(tmp_path):
    """A cluster that wants the token `one`, a client that has asked once, and how often its exec plug-in has run, which
    gives what tmp_path/token holds."""
    with FakeCluster(tmp_path / "cluster", token="one") as cluster:
        (tmp_path / "token").write_text("one")
        (tmp_path / "plug-in").write_text(PLUG_IN.format(folder=tmp_path))
        (tmp_path / "plug-in").chmod(0o755)
        config = yaml.safe_load(cluster.kubeconfig.read_text())
        plug_in = {"apiVersion": "client.authentication.k8s.io/v1", "command": str(tmp_path / "plug-in"),
                   "interactiveMode": "Never"}
        config["users"] = [{**user, "user": {"exec": plug_in}} for user in config["users"]]
        (tmp_path / "kubeconfig").write_text(yaml.safe_dump(config))
        kube = Kube({"KUBECONFIG": str(tmp_path / "kubeconfig")}, None)
        kube.list("Pod", "default")
        yield cluster, kube, lambda: len((tmp_path / "runs").read_text().split())


def test_an_expired_token_is_renewed_once_for_all_threads_and_no_call_fails(signed_in, tmp_path):
    cluster, kube, runs = signed_in
    before = runs()
    cluster.token = "two"
    (tmp_path / "token").write_text("two")
    failed, together = [], threading.Barrier(THREADS)

    def ask():
        together.wait()
        try:
            kube.list("Pod", "default")
        except ApiError as error:
            failed.append(error)

    threads = [threading.Thread(target=ask) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (failed, runs() - before) == ([], 1)


def test_a_kubeconfig_that_is_replaced_is_read_again(signed_in, tmp_path):
    _, kube, runs = signed_in
    before = runs()
    os.utime(tmp_path / "kubeconfig", (1, 1))
    kube.list("Pod", "default")
    kube.list("Pod", "default")
    assert runs() - before == 1


def test_who_is_refused_again_is_told_so(signed_in):
    cluster, kube, _ = signed_in
    cluster.token = "three"
    with pytest.raises(ApiError, match="rejected your credentials"):
        kube.list("Pod", "default")
