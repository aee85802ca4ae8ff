"""A secret's value is where the job reads it and nowhere else: no file but the 0600 one, no object but the Secret, no
command line, no output; and not after the run's end."""

import base64
import json
import stat
import threading
import urllib.request
from pathlib import Path

from tests.contract.test_backends import WAIT

VALUE = "hf_Zz9" + "Qw7" * 11  # as a token looks, so that whoever redacts by shape has to find it too
NAME = "LAUNCH_TEST_TOKEN"


class CommandLines(threading.Thread):
    """Reads the command line of every process of this machine, over and over."""

    def __init__(self):
        super().__init__(daemon=True)
        self.done, self.seen, self.leaks = threading.Event(), 0, set()

    def run(self):
        while not self.done.wait(0.01):
            for path in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    words = path.read_bytes()
                except OSError:
                    continue
                self.seen += b"submit" in words
                if VALUE.encode() in words:
                    self.leaks.add(words)

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.done.set()
        self.join()


def holders(home):
    """Files of the launch home that hold the value."""
    return [path for path in home.rglob("*") if path.is_file() and VALUE.encode() in path.read_bytes()]


def kinds_that_hold_it(site):
    """Kinds of objects in the cluster that hold the value, as text or in base64."""
    if site.backend != "kubernetes":
        return set()
    config = json.loads(Path(site.launch.env["KUBECONFIG"]).read_text())
    url = config["clusters"][0]["cluster"]["server"]
    forms = (VALUE.encode(), base64.b64encode(VALUE.encode()))
    found = set()
    for path in ("api/v1/pods", "api/v1/services", "api/v1/configmaps", "api/v1/secrets", "api/v1/events",
                 "apis/batch/v1/jobs"):
        with urllib.request.urlopen(f"{url}/{path}") as answer:
            text = answer.read()
        if any(form in text for form in forms):
            found.add(path.rpartition("/")[2])
    return found


def test_a_value_is_in_its_own_place_only(site):
    site.launch.env[NAME] = VALUE
    gate, go = site.gate()
    job = site.job(f'{gate}\n[ "${NAME}" = "$(printf "hf_Zz9"; printf "Qw7%.0s" 1 2 3 4 5 6 7 8 9 10 11)" ]',
                   secrets=[NAME])
    with CommandLines() as lines:
        submit = site.launch.start("--debug", "submit", job)  # with a command line of its own
        said = "".join(submit.communicate())
        run_id = site.launch.json("list")[-1]["run"]
        site.wait(run_id, "running", "pending")
        listed = site.launch.run("--debug", "logs", run_id)
    assert submit.returncode == 0, said
    assert lines.seen
    assert lines.leaks == set()
    assert VALUE not in said + listed.stdout + listed.stderr
    secret = site.launch.run_dir(run_id) / "secrets.env"
    assert holders(site.launch.home) == ([] if site.backend == "kubernetes" else [secret])
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in holders(site.launch.home))
    assert kinds_that_hold_it(site) == ({"secrets"} if site.backend == "kubernetes" else set())
    go.touch()
    assert site.wait(run_id, "succeeded")["exit_code"] == 0
    assert holders(site.launch.home) == []


def test_a_cancelled_run_keeps_no_value(site):
    site.launch.env[NAME] = VALUE
    run_id = site.submit(WAIT, secrets=[NAME])
    site.wait(run_id, "running")
    site.launch.ok("cancel", run_id)
    assert holders(site.launch.home) == []
    assert kinds_that_hold_it(site) == set()


def test_a_token_in_the_job_is_refused_before_anything_is_sent(site):
    job = site.job("true", env={"X": VALUE, "API_KEY": "anything"})
    done = site.launch.run("submit", job)
    assert (done.returncode, done.stdout) == (2, "")
    assert "env.X: holds a Hugging Face token (hf_…); a job names its secrets" in done.stderr
    assert "env.API_KEY: holds a value for a name that says secret" in done.stderr
    assert VALUE not in done.stderr
    assert not (site.launch.home / "runs").exists()
