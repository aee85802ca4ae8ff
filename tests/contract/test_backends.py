"""What every back end promises, shown through the real command with jobs that really run on two nodes."""

import json
import os
import re
import shlex
import stat
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from tests.contract.sites import PATIENCE_S
from trainer.node.finish import mark_finished

UGLY = {
    "SPACES": "  two  spaces ", "QUOTES": "it's \"quoted\"", "DOLLAR": "$HOME ${PATH} $(date) `date`",
    "BACKSLASH": "a\\nb\\", "LINES": "one\ntwo\n", "UNICODE": "上海 é 😀", "YAML": "no", "COLON": "a: b # c",
    "COMMA": "a,b=c;d&e|f", "EMPTY": "", "STARS": "* ? [a] ~ !", "PERCENT": "%s %(x)s $$ $(X)", "TAB": "a\tb",
    # what launch's own scripts would stumble over
    "RUN_DIR": "/nowhere", "ATTEMPT_DIR": "/nowhere", "code": "9", "failures": "9", "BASH_ENV": "/nowhere",
    "SRUN_CPUS_PER_TASK": "9", "SBATCH_PARTITION": "none",
}
# Until it is told to stop.
WAIT = "trap 'exit 143' TERM; sleep 600 & wait"
# Printed in a form that survives any log.
SHOW_ENV = f"import os; [print(name, os.environb[name.encode()].hex()) for name in {list(UGLY)}]"


def text_of(launch, run_id):
    """Everything that a run folder holds, but the file of secrets."""
    files = [path for path in launch.run_dir(run_id).rglob("*") if path.is_file() and path.name != "secrets.env"]
    return b"\n".join(path.read_bytes() for path in files)


def test_submit_prints_the_handle_alone(site):
    script, go = site.gate()
    go.touch()
    printed = site.launch.ok("submit", site.job(script))
    forms = {"kubernetes": r"k8s://[^/\s]+/[^/\s]+/[-a-z0-9]+\n", "slurm": r"slurm://[^/\s]+/\d+\n"}
    assert re.fullmatch(forms.get(site.backend, rf"{site.backend}://[-a-z0-9]+\n"), printed)
    run_id = site.launch.json("list")[-1]["run"]
    site.wait(run_id, "succeeded")
    assert site.launch.json("status", printed.strip())[0]["run"] == run_id


def test_logs_follow_a_run_and_outlive_it(site):
    gate, go = site.gate()
    count = 300
    run_id = site.submit(f'for i in $(seq {count}); do echo "$rank line $i"; done\n{gate}\necho "$rank last"')
    want = {node: [*(f"{node} line {i}" for i in range(1, count + 1)), f"{node} last"] for node in (0, 1)}
    follower = site.launch.start("logs", "-f", run_id)
    first = follower.stdout.readline()
    assert re.fullmatch(r"\[node [01]\] [01] line 1\n", first), first + follower.stderr.read() * (not first)
    assert site.wait(run_id, "running")["state"] == "running"
    go.touch()
    rest, errors = follower.stdout.read(), follower.stderr.read()
    assert follower.wait(PATIENCE_S) == 0, errors
    seen = [re.fullmatch(r"\[node (\d)\] (.*)", line).groups() for line in (first + rest).splitlines()]
    assert {node: [text for number, text in seen if number == str(node)] for node in (0, 1)} == want
    site.wait(run_id, "succeeded")
    assert site.lines(run_id) == want
    assert site.lines(run_id, "--tail", "2") == {node: lines[-2:] for node, lines in want.items()}
    assert site.lines(run_id, "--node", "1") == {1: want[1]}


def test_states_of_a_good_run(site):
    gate, go = site.gate()
    run_id = site.submit(gate)
    assert site.status(run_id)["state"] in ("pending", "running")
    site.wait(run_id, "running")
    go.touch()
    status = site.wait(run_id, "succeeded")
    assert status["exit_code"] == 0
    assert [node["node"] for node in status["nodes"]] == [0, 1]
    assert {node["state"] for node in status["nodes"]} == {"succeeded"}
    assert f"{run_id}  succeeded" in site.launch.ok("status", run_id)


def test_failed_job_shows_its_exit_code(site):
    job = site.job('echo "$rank says"; if [ "$rank" = 1 ]; then exit 7; fi; ' + WAIT)
    done = site.launch.run("submit", "--follow", job, timeout_s=PATIENCE_S)
    assert done.returncode == 5, done.stderr
    assert len(done.stdout.splitlines()) == 1
    assert "[node 1] 1 says" in done.stderr
    assert re.search(r"^error: \S+ failed: .*\b7\b", done.stderr, re.MULTILINE)
    run_id = site.launch.json("list")[-1]["run"]
    status = site.status(run_id)
    assert (status["state"], status["exit_code"]) == ("failed", 7)


def test_exit_code_75_of_a_command_is_a_failure_like_any_other(site):
    """Without a stop it would start the job again for ever."""
    run_id = site.submit('echo "$rank try"; exit 75', restarts=0, resources={"nodes": 1})
    status = site.wait(run_id, "failed")
    assert (status["exit_code"], [node["restarts"] for node in status["nodes"]]) == (75, [0])
    assert site.lines(run_id)[0].count("0 try") == 1


def test_follow_of_a_good_job_ends_with_zero(site):
    done = site.launch.run("submit", "--follow", site.job('echo "$rank done"'), timeout_s=PATIENCE_S)
    assert done.returncode == 0, done.stderr
    assert {"[node 0] 0 done", "[node 1] 1 done"} <= set(done.stderr.splitlines())


def test_cancel_twice_leaves_nothing(site):
    run_id = site.submit('echo "$rank up"; ' + WAIT)
    run = site.launch.json("list")[-1]
    site.wait(run_id, "running")
    site.launch.ok("cancel", run_id)
    assert site.wait(run_id, "cancelled")["state"] == "cancelled"
    assert site.leftovers(run) == []
    again = site.launch.run("cancel", run_id)
    assert again.returncode == 0, again.stderr
    assert "cancelled" in again.stderr
    assert site.status(run_id)["state"] == "cancelled"


def test_cancel_without_a_run_names_what_it_could_mean_and_ends_nothing(site):
    run_id = site.submit('echo "$rank up"; ' + WAIT)
    site.wait(run_id, "running")
    refused = site.launch.run("cancel", stdin=subprocess.DEVNULL)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert re.search(rf"\n  {run_id} \({site.backend}, running, started \d+ (s|min) ago\)\n", refused.stderr)
    assert refused.stderr.endswith(f"hint:  name one: launch cancel {run_id}\n")
    assert site.status(run_id)["state"] == "running"
    site.launch.ok("cancel", "-y")
    site.wait(run_id, "cancelled")
    refused = site.launch.run("cancel", stdin=subprocess.DEVNULL)
    assert (refused.returncode, "the latest ones have ended" in refused.stderr) == (2, True)


def test_every_verb_takes_the_start_of_a_run_id(site):
    run_id = site.submit('echo "$rank done"')
    site.wait(run_id, "succeeded")
    assert site.status("contr")["run"] == run_id
    assert site.lines("contr") == {0: ["0 done"], 1: ["1 done"]}
    assert f"{run_id} has ended already" in site.launch.run("cancel", "contr").stderr
    assert run_id in site.launch.run("repair", "contr").stderr
    second = site.submit('echo "$rank done"')
    site.wait(second, "succeeded")
    for verb in ("status", "logs", "cancel", "repair"):
        ambiguous = site.launch.run(verb, "contr")
        assert (ambiguous.returncode, f"{run_id}, {second}" in ambiguous.stderr) == (4, True)
    assert site.status(run_id)["run"] == run_id


def test_after_a_refused_submit_no_older_run_is_acted_on(site):
    older = site.submit("true")
    site.wait(older, "succeeded")
    for mistake in ({"secrets": ["LAUNCH_TEST_ABSENT"]}, {"restarts": -1}):
        assert site.launch.run("submit", site.job("true", **mistake)).returncode == 2
        for words in (("status",), ("logs",), ("cancel", "--yes"), ("repair", "--yes"), ("chat", "--once=a")):
            done = site.launch.run(*words)
            assert (done.returncode, done.stdout) == (4, "")
            assert re.match(r"error: job.yaml was not started at 20\S+Z: ", done.stderr)
            again = " ".join(["launch", words[0], older, *words[1:]])
            assert done.stderr.endswith(f"hint:  the run before it: {again}\n")
    assert [run["run"] for run in site.launch.json("list")] == [older]
    assert site.status(older)["state"] == "succeeded"
    site.launch.run("submit", "--dry-run", site.job("true"))
    assert site.launch.run("status").returncode == 4  # a dry run starts nothing
    newer = site.submit("true")
    assert site.launch.json("status")[0]["run"] == newer
    site.wait(newer, "succeeded")


def test_cancel_after_the_end_changes_nothing(site):
    run_id = site.submit('echo "$rank done"')
    site.wait(run_id, "succeeded")
    assert site.launch.run("cancel", run_id).returncode == 0
    assert site.status(run_id)["state"] == "succeeded"
    assert site.lines(run_id) == {0: ["0 done"], 1: ["1 done"]}


def test_the_same_job_twice_is_two_runs(site):
    first = site.submit("true")
    second = site.submit("true")
    assert second == f"{first}-2"
    site.wait(first, "succeeded")
    site.wait(second, "succeeded")


def test_what_is_sent_is_what_render_prints(site):
    run_id = site.submit("true", env=UGLY, restarts=2)
    site.wait(run_id, "succeeded")
    stored = next(site.launch.run_dir(run_id).glob("render.*")).read_text()
    assert site.launch.ok("render", "job.yaml", "--run-id", run_id) == stored
    assert site.launch.ok("render", "job.yaml") == stored  # the default id is a hash of what it depends on
    dry = site.launch.ok("submit", "--dry-run", "job.yaml")
    assert dry == stored.replace(run_id, f"{run_id}-2")
    assert [run["run"] for run in site.launch.json("list")] == [run_id]


def test_unknown_run_ends_with_4(site):
    for verb in ("logs", "status", "cancel"):
        done = site.launch.run(verb, "no-such-run")
        assert (done.returncode, done.stdout) == (4, "")
        assert done.stderr.startswith("error: no ")


def test_secrets_reach_the_job_and_nothing_else(site):
    value = "s3cr3t with 'quotes' and $dollar"
    site.launch.env["LAUNCH_TEST_TOKEN"] = value
    run_id = site.submit('printf %s "$LAUNCH_TEST_TOKEN" | wc -c; '
                         '[ "$LAUNCH_TEST_TOKEN" = "$EXPECTED" ]; echo "differs: $?"',
                         secrets=["LAUNCH_TEST_TOKEN"], env={"EXPECTED": "s3cr3t"})
    site.wait(run_id, "succeeded")
    assert site.lines(run_id) == {node: [str(len(value)), "differs: 1"] for node in (0, 1)}
    assert value not in site.launch.ok("render", "job.yaml")
    assert b"with 'quotes' and" not in text_of(site.launch, run_id)
    for path in site.launch.run_dir(run_id).rglob("secrets.env"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_missing_secret_is_told_before_anything_is_sent(site):
    done = site.launch.run("submit", site.job("true", secrets=["LAUNCH_TEST_ABSENT"]))
    assert done.returncode == 2
    assert "LAUNCH_TEST_ABSENT" in done.stderr
    assert site.launch.json("list") == []


def test_env_values_arrive_as_written(site):
    run_id = site.submit(shlex.join(["exec", sys.executable, "-c", SHOW_ENV]), env=UGLY)
    site.wait(run_id, "succeeded")
    want = [f"{name} {value.encode().hex()}" for name, value in UGLY.items()]
    assert site.lines(run_id) == {0: want, 1: want}


def test_code_reaches_the_job_as_it_is(site):
    code = site.launch.cwd / "code"
    (code / "inner").mkdir(parents=True)
    (code / "hello_code.py").write_text("TEXT = 'fresh from the working folder'\n")
    (code / "inner/data.txt").write_text("data\n")
    (code / ".gitignore").write_text("ignored.py\n")
    (code / "ignored.py").write_text("")
    find = "import hello_code, pathlib, importlib.util as u; here = pathlib.Path(hello_code.__file__).parent; " \
           "print(hello_code.TEXT, (here / 'inner/data.txt').read_text().strip(), u.find_spec('ignored'))"
    run_id = site.submit(f'exec {shlex.quote(sys.executable)} -c "{find}"', code="code")
    site.wait(run_id, "succeeded")
    line = "fresh from the working folder data None"
    assert site.lines(run_id) == {0: [line], 1: [line]}


def test_code_stays_as_it_was_and_comes_before_the_jobs_own_python_path(site):
    """It can only be read (for root only the mode says so), and running it adds nothing."""
    (site.launch.cwd / "code").mkdir()
    (site.launch.cwd / "code/hello_code.py").write_text("")
    look = "import hello_code, os; path = hello_code.__file__; " \
           "print(os.stat(path).st_mode & 0o222 == 0 or not os.access(path, os.W_OK), " \
           "os.listdir(os.path.dirname(path)), os.environ['PYTHONPATH'].partition('code:')[2])"
    run_id = site.submit(f'cd /; exec {sys.executable} -c "{look}"', code="code", env={"PYTHONPATH": "/my libs:/more"})
    site.wait(run_id, "succeeded")
    line = "True ['hello_code.py'] /my libs:/more"
    assert site.lines(run_id) == {0: [line], 1: [line]}


def test_a_training_takes_no_modules_from_its_working_folder(site):
    """Whoever writes there could be another run. Its results are there already, so it has nothing to do."""
    if site.backend == "kubernetes":
        pytest.skip("on a volume there: fake_k8s/test_k8s_code")
    if site.profile:
        site.profile = {**site.profile, "python": sys.executable}
    train = {"model": {"path": "m"}, "data": {"sources": [{"path": "d"}]}, "settings": {"output_dir": "out"}}
    folder = site.launch.cwd / "job"
    (folder / "out").mkdir(parents=True)
    job = (site.launch.cwd / site.job("", run=None, train=train)).rename(folder / "job.yaml")
    run_id = site.launch.json("validate", str(job))[0]["run_id"]
    mark_finished(folder / "out", {"LAUNCH_RUN_ID": run_id})
    for name in ("socket", "yaml", "trainer"):
        (folder / f"{name}.py").write_text("raise SystemExit('not the real one')")
    site.launch.ok("submit", str(job))
    site.wait(run_id, "succeeded")
    assert "the results of this run are written already" in site.lines(run_id)[0][0]


def test_each_node_knows_its_place(site):
    run_id = site.submit('echo "$rank of $LAUNCH_NODES, $LAUNCH_PROCESSES_PER_NODE each, '
                         '$MASTER_PORT, ${MASTER_ADDR:+named}"')
    site.wait(run_id, "succeeded")
    place = re.compile(r"(\d) of 2, 1 each, (\d+), named")
    found = {node: place.fullmatch(text[0]).groups() for node, text in site.lines(run_id).items()}
    assert found[0][0] == "0"
    assert found[1][0] == "1"
    assert found[0][1] == found[1][1]


def test_the_latest_run_is_meant_when_none_is_named(site):
    site.submit("echo first")
    second = site.submit("echo second")
    site.wait(second, "succeeded")
    assert [line["text"] for line in site.launch.json("logs")] == ["second"] * 2
    assert [status["run"] for status in site.launch.json("status")] == [second]


def test_list_shows_every_run(site):
    runs = [site.submit("true"), site.submit("echo other")]
    for run_id in runs:
        site.wait(run_id, "succeeded")
    listed = site.launch.json("list")
    assert [(run["run"], run["state"], run["nodes"]) for run in listed] == [(run_id, "succeeded", 2) for run_id in runs]
    table = site.launch.ok("list").splitlines()
    assert table[0].split() == ["RUN", "STATE", "NODES", "CREATED", "HANDLE"]
    assert [row.split()[0] for row in table[1:]] == runs


def test_a_file_of_the_job_folder_can_be_written(site):
    """Not for Kubernetes, where a job sees only what its mounts name."""
    if site.backend == "kubernetes":
        pytest.skip("a pod does not see the submitter's folder")
    run_id = site.submit('echo "$rank" >"out-$rank"')
    site.wait(run_id, "succeeded")
    assert sorted(name for name in os.listdir(site.launch.cwd) if name.startswith("out-")) == ["out-0", "out-1"]


def test_an_id_that_another_machine_has_used_is_passed_over(kubernetes_site):
    site = kubernetes_site
    first = site.submit("sleep 30")
    elsewhere = replace(site, launch=replace(site.launch, home=site.launch.home.with_name("another-home")))
    assert elsewhere.submit("sleep 30") == f"{first}-2"
    refused = elsewhere.launch.run("submit", "job.yaml", "--run-id", first)
    assert (refused.returncode, "exists already" in refused.stderr) == (3, True)


def test_a_rank_is_found_on_a_node_of_several(site):
    """2 nodes of 4 processes: rank 5 is on node 1."""
    run_id = site.submit('for local in 0 1 2 3; do echo "[rank $((rank * 4 + local))] here"; done',
                         resources={"nodes": 2, "gpus_per_node": 4})
    site.wait(run_id, "succeeded")
    assert site.lines(run_id, "--rank", "5") == {1: ["[rank 5] here"]}


def test_codes_of_a_training_say_nothing_of_a_command(site):
    run_id = site.submit("exit 70", restarts=0, resources={"nodes": 1})
    assert "diverged" not in site.wait(run_id, "failed")["reason"]


def test_a_run_is_ended_by_its_record_alone(site):
    """Whatever became of what was sent."""
    run_id = site.submit("trap 'exit 1' TERM; echo up; sleep 600 & wait", resources={"nodes": 1})
    deadline = time.monotonic() + PATIENCE_S
    while not site.lines(run_id):
        assert time.monotonic() < deadline
        time.sleep(0.2)
    for path in site.launch.run_dir(run_id).glob("render.*"):
        path.unlink()
    site.launch.ok("cancel", run_id)
    assert site.status(run_id)["state"] == "cancelled"
    record = json.loads((site.launch.run_dir(run_id) / "run.json").read_text())
    assert (record["end"]["state"], record["kind"], record["processes_per_node"]) == ("cancelled", "run", 1)
