"""The rule of this folder: a test runs in its own process, asks no server and waits for no clock. What cannot keep it
lies in tests/process or tests/fake_k8s."""

import os
import socket
import subprocess
import time
from pathlib import Path

import pytest
import urllib3  # noqa: F401  (it binds a socket while it is imported, to see whether there is IPv6)

READERS = {"bash", "sh", "rm"}  # they judge at once what was written for them


@pytest.fixture(autouse=True)
def in_this_process_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever starts a process, serves, or sleeps is told where that belongs."""

    def refuse(*_args: object) -> None:
        pytest.fail("a unit test starts no process, serves nothing and waits for no clock: see tests/process")

    start = subprocess.Popen.__init__

    def started(process: subprocess.Popen, args: list[str], *more: object, **options: object) -> None:
        if Path(args[0]).name not in READERS:
            refuse()
        start(process, args, *more, **options)

    monkeypatch.setattr(subprocess.Popen, "__init__", started)
    monkeypatch.setattr(socket.socket, "bind", refuse)
    monkeypatch.setattr(time, "sleep", refuse)
    monkeypatch.setattr(os, "fork", refuse)
