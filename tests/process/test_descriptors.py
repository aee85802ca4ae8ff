"""What a process's own descriptors decide: a reader that has gone, and how many files may be open."""

import resource
import subprocess
import sys

import pytest


def test_a_closed_pipe_is_no_error(launch):
    (launch.cwd / "job.yaml").write_text("name: a\nrun: [echo, hello]\n")
    shell = f"'{sys.executable}' -m launcher.cli render job.yaml | exec 0<&-; echo ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, cwd=launch.cwd)
    assert done.stderr == ""
    assert done.stdout == "141\n"


MANY = """
import resource, sys, threading
from pathlib import Path
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[2])))
from launcher.errors import BackendError
from launcher.logs.line import LogQuery
from launcher.backends.kubernetes.logs.pods import read_logs
from tests.unit.test_pod_logs import Script, pod
pods = {pod(node, f"p{node}"): [(0, "line")] for node in range(450)}
try:
    found = read_logs(Script(pods), Path(sys.argv[3]), list(range(450)), LogQuery(follow=True), stop=threading.Event())
    print(sum(len(batch) for batch in found))
except BackendError as error:
    print(error.message)
"""


@pytest.mark.parametrize(("hard", "printed"), [
    (1024, "450"), (512, "reading so many nodes at once takes 964 open files, and 512 are allowed here")])
def test_more_nodes_than_files_may_be_open_at_first(tmp_path, pytestconfig, hard, printed):
    assert resource.getrlimit(resource.RLIMIT_NOFILE)[1] >= 1024
    done = subprocess.run([sys.executable, "-c", MANY, "256", str(hard), str(tmp_path)], capture_output=True, text=True,
                          cwd=pytestconfig.rootpath)
    assert done.stdout.strip() == printed, done.stderr
