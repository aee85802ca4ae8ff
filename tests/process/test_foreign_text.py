"""What a cluster or a job says cannot reach the user's terminal as orders, whichever command shows it."""

import json
import os
import pty
import re
import subprocess
import sys

import pytest

from tests.contract.sites import PATIENCE_S, Site, kubernetes_at
from tests.fakes.slurm.cluster import FakeSlurm

# Sets the window's title, clears the screen in two ways, and turns what follows around.
BAD = "\x1b]0;owned\x07\x1b[2J\x9b2J\u202e"
SHOWN = "␛]0;owned␇␛[2J<U+009B>2J<U+202E>"
OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


@pytest.fixture
def kubernetes(launch, tmp_path):
    with kubernetes_at(launch, tmp_path / "cluster") as (site, cluster):
        yield site, cluster


@pytest.fixture
def slurm(launch, tmp_path):
    (tmp_path / "slurm").mkdir()
    cluster = FakeSlurm(tmp_path / "slurm")
    launch.env.update(cluster.environ())
    return Site("slurm", launch, lambda run: [], {"container_runtime": "none"}), cluster


def shown(site, *words):
    """What a command prints; none of it may be an order."""
    done = site.launch.run(*words)
    assert not OBEYED.search(done.stdout + done.stderr), (done.stdout, done.stderr)
    return done.stdout + done.stderr


def test_the_last_words_of_a_pod(kubernetes):
    site, _ = kubernetes
    run_id = site.submit(f"printf '%s' '{BAD}bad end' >/dev/termination-log; exit 3", resources={"nodes": 1})
    site.wait(run_id, "failed")
    assert f"{SHOWN}bad end" in shown(site, "status", run_id)
    assert f"{BAD}bad end" in json.loads(shown(site, "status", "--json", run_id))["reason"]
    shown(site, "list")


def test_the_refusal_of_an_api_server(kubernetes):
    site, cluster = kubernetes
    cluster.deny("/jobs$", f"not today {BAD}")
    assert f"not today {SHOWN}" in shown(site, "submit", site.job("true"))
    assert f"not today {SHOWN}" in shown(site, "status")  # of the refused submit


def test_the_words_of_slurm(slurm):
    site, cluster = slurm
    site.profile["partition"] = f"a{BAD}"
    assert f"a{SHOWN}" in shown(site, "submit", site.job("true"))
    del site.profile["partition"]
    cluster.hold(f"Why{BAD}")
    run_id = site.submit("true")
    assert f"Why{SHOWN}" in shown(site, "status", run_id)
    assert f"{run_id}: cancelled" in shown(site, "cancel", run_id)


def test_the_log_of_a_job_on_a_terminal(launch, slurm):
    site, _ = slurm
    run_id = site.submit(f"printf '%s\\n' 'red \x1b[31m{BAD}line'", resources={"nodes": 1})
    site.wait(run_id, "succeeded")
    keyboard, terminal = pty.openpty()
    subprocess.run([sys.executable, "-m", "launcher.cli", "logs", run_id], cwd=launch.cwd, stdout=terminal, check=True,
                   env={**launch.environ(), "TERM": "xterm", "NO_COLOR": ""}, timeout=PATIENCE_S)
    os.close(terminal)
    text = os.read(keyboard, 10_000).decode()
    os.close(keyboard)
    assert "line" in text
    assert not any(order in text for order in ("owned", "\x1b[2J", "\x9b", "\u202e"))
