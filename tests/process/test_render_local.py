"""The script for this machine: bash takes it, and every word arrives as it was written."""

import json
import os
import socket
import subprocess
import sys

from hypothesis import example, given, settings
from hypothesis import strategies as st

from launcher.backends.hosts.script import master_port
from tests.jobs import plan_of, rendered

TEXT = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=30)
NAMES = st.from_regex(r"JOB_[A-Z0-9_]{0,8}", fullmatch=True)
SHOW = """import json, os, sys
print(json.dumps([sys.argv[1:], {key: value for key, value in os.environ.items() if key.startswith("JOB_")}]))"""


def script(**fields):
    return rendered(plan_of({"name": "a", "run": ["true"], **fields}, {"backend": "local"}, run_id="a-1")).text


def run(text, home):
    """Run a rendered script as submit does; returns the log of node 0."""
    environ = {"PATH": os.environ["PATH"], "LAUNCH_HOME": str(home)}
    done = subprocess.run(["bash"], input=text, text=True, cwd=home, env=environ)
    log = (home / "runs/a-1/logs/node-0.r0.log").read_text(encoding="utf-8")
    assert done.returncode == 0, log
    return log


@settings(max_examples=40, deadline=None)
@given(st.lists(TEXT, max_size=4), st.dictionaries(NAMES, TEXT, max_size=3))
@example(["LAUNCH_END", "a\nLAUNCH_END\nb", "'\"$(x)`x`\\"], {"JOB_": "LAUNCH_END\n"})
def test_words_and_values_arrive_as_written(tmp_path_factory, words, env):
    log = run(script(run=[sys.executable, "-c", SHOW, *words], env=env), tmp_path_factory.mktemp("home"))
    assert json.loads(log) == [words, env]


def test_the_job_s_own_env_wins(tmp_path):
    log = run(script(run=["printenv", "NCCL_DEBUG", "LAUNCH_NODES"], env={"NCCL_DEBUG": "INFO"}), tmp_path)
    assert log == "INFO\n1\n"


def test_the_config_file_is_the_plan_s_text(tmp_path):
    """A marker inside the text does not end it."""
    questions = ["LAUNCH_END\n$HOME 'x'", "LAUNCH_END_"]
    train = {"model": {"path": "m"}, "data": {"sources": [{"path": "x"}]}, "runtime": {"sample_prompts": questions}}
    plan = plan_of({"name": "a", "train": train}, {"backend": "local", "python": "true"}, run_id="a-1")
    run(rendered(plan).text, tmp_path)
    assert (tmp_path / "runs/a-1/train.yaml").read_text(encoding="utf-8") == plan.payload.files["train.yaml"]


def test_a_name_with_line_ends_is_no_code(tmp_path):
    marker = tmp_path / "made"
    run(script(name=f"a\ntouch {marker}\n"), tmp_path)
    assert not marker.exists()


def test_renders_are_the_same_bytes():
    fields = {"env": {"B": "1", "A": "2"}, "resources": {"nodes": 64}, "secrets": ["T"]}
    assert script(**fields) == script(**fields)
    assert len(script(**fields).splitlines()) == len(script(**{**fields, "resources": {"nodes": 2}}).splitlines())


def test_a_port_that_something_listens_at_is_passed_over():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        lines = [line.replace("20000", str(port)) for line in master_port("0")]
        script = "\n".join([*lines, 'echo "$MASTER_PORT"'])
        done = subprocess.run(["bash", "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) > port
    assert done.stderr == ""
