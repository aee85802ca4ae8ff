#!/usr/bin/env python3
"""sbatch, srun, squeue, sacct, scontrol and scancel with state, without root and without daemons: every name in bin/
is this file. The batch script really runs, on this machine, and srun really starts its command once for each node.

The state lies in $FAKE_SLURM_DIR: `jobs/ID/` for each job, and what a test sets there as files (see FakeSlurm in
cluster.py): `pending` (a reason for which jobs wait), `end_as` (a state and an exit code that jobs end with),
`accounting` (sacct works), `down` (nothing answers), `lose_answers` (sbatch's sender does not hear that it was taken),
`cluster` (this is one of several clusters, of this name).
Words and exit codes are those of Slurm 22.05.
"""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

HERE = Path(os.environ.get("FAKE_SLURM_DIR", "."))
KILL_WAIT_S, LOOK_S, NODES, GPUS = 2.0, 0.02, 4, 4


def job_dir(job_id):
    """The folder of a job; ends with Slurm's words when there is none."""
    folder = HERE / "jobs" / str(job_id)
    if not folder.is_dir():
        sys.exit("slurm_load_jobs error: Invalid job id specified")
    return folder


def read(path, default=""):
    """The text of a file, without its line end."""
    try:
        return path.read_text().strip()
    except FileNotFoundError:
        return default


def write(path, text):
    """Replace a file whole."""
    part = path.with_name(f".{path.name}.{os.getpid()}")
    part.write_text(str(text))
    part.replace(path)


def kill(pid, number, *, group):
    """Signal a process or its group, if there is one."""
    with contextlib.suppress(ProcessLookupError, ValueError):
        (os.killpg if group else os.kill)(int(pid), number)


def options_of(words):
    """`--name=value` words as a dict, and the rest."""
    pairs = (word[2:].partition("=") for word in words if word.startswith("--"))
    return {name: value for name, _, value in pairs}, [word for word in words if not word.startswith("-")]


def sbatch(argv):
    """Check, number and start a script from stdin."""
    given, _ = options_of(argv)
    script = sys.stdin.read()
    directives = [line.split()[1] for line in script.splitlines() if line.startswith("#SBATCH ")]
    options = {**options_of(directives)[0], **given}
    if options.get("partition", "main") != "main":
        sys.stderr.write(f"sbatch: error: invalid partition specified: {options['partition']}\n")
        sys.exit("sbatch: error: Batch job submission failed: Invalid partition name specified")
    if int(options["nodes"]) > NODES or int(options.get("gpus-per-node", 0)) > GPUS:
        sys.exit("allocation failure: Requested node configuration is not available")
    if "test-only" in given:
        sys.stderr.write("sbatch: Job 1 to start at 2026-01-01T00:00:00 in partition main\n")
        return
    folder = new_job()
    write(folder / "script", script)
    write(folder / "options", json.dumps(options))
    write(folder / "state", "PENDING")
    subprocess.Popen([sys.executable, str(Path(__file__).resolve()), "supervise", folder.name], start_new_session=True,
                     stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    if (HERE / "lose_answers").exists():
        sys.exit("sbatch: error: Batch job submission failed: Socket timed out on send/recv operation")
    cluster = read(HERE / "cluster")
    print(f"{folder.name};{cluster}" if cluster else folder.name)


def new_job():
    """The folder of the next number."""
    (HERE / "jobs").mkdir(exist_ok=True)
    number = 1
    while True:
        try:
            (HERE / "jobs" / str(number)).mkdir()
        except FileExistsError:
            number += 1
            continue
        return HERE / "jobs" / str(number)


def supervise(argv):
    """What slurmctld and slurmd do for one job: wait, run the script, run it again when asked, note the end."""
    folder = job_dir(argv[0])
    while True:
        while (HERE / "pending").exists() and not (folder / "cancel").exists():
            time.sleep(LOOK_S)
        if (folder / "cancel").exists():
            write(folder / "end", "CANCELLED 0:0")
            return
        code = run_script(folder)
        if (folder / "cancel").exists() or not (folder / "requeue").exists():
            break
        write(folder / "restarts", int(read(folder / "restarts", "0")) + 1)
        (folder / "requeue").unlink()
        write(folder / "state", "PENDING")
    natural = "COMPLETED 0:0" if code == 0 else f"FAILED {code}:0"
    write(folder / "end", "CANCELLED 0:15" if (folder / "cancel").exists() else read(HERE / "end_as") or natural)


def run_script(folder):
    """One attempt; a script that does not end KILL_WAIT_S after an order to is killed."""
    options, restarts = json.loads(read(folder / "options")), int(read(folder / "restarts", "0"))
    environ = {**os.environ, "SLURM_JOB_ID": folder.name, "SLURM_JOB_NUM_NODES": options["nodes"],
               "SLURM_JOB_NODELIST": node_list(options), "SLURM_CPUS_PER_TASK": options.get("cpus-per-task", "1")}
    if restarts:
        environ["SLURM_RESTART_COUNT"] = str(restarts)
    (folder / "steps").unlink(missing_ok=True)
    batch = subprocess.Popen(["bash", str(folder / "script")], env=environ, start_new_session=True,
                             stdin=subprocess.DEVNULL)
    write(folder / "batch", batch.pid)
    write(folder / "state", "RUNNING")
    deadline = None
    while batch.poll() is None:
        if deadline is None and ((folder / "cancel").exists() or (folder / "requeue").exists()):
            write(folder / "state", "COMPLETING")
            deadline = time.monotonic() + KILL_WAIT_S
        if deadline and time.monotonic() > deadline:
            break
        time.sleep(LOOK_S)
    for pid in (*read(folder / "steps").split(), batch.pid):
        kill(pid, signal.SIGKILL, group=True)
    return batch.wait() if batch.returncode is None or batch.returncode >= 0 else 128 - batch.returncode


def node_list(options):
    """`n1` or `n[1-4]`."""
    return "n1" if options["nodes"] == "1" else f"n[1-{options['nodes']}]"


def srun(argv):
    """The command once a node, in a process group each; the first bad exit ends the others."""
    start = argv.index("bash")
    options, _ = options_of(argv[:start])
    folder = job_dir(os.environ["SLURM_JOB_ID"])
    tasks = []
    for node in range(int(os.environ["SLURM_JOB_NUM_NODES"])):
        with open(options["output"].replace("%n", str(node)), "ab") as output:
            environ = {**os.environ, "SLURM_NODEID": str(node), "SLURM_PROCID": str(node), "SLURM_STEP_ID": "0"}
            tasks.append(subprocess.Popen(argv[start:], env=environ, stdout=output, stderr=output,
                                          start_new_session=True))
    write(folder / "steps", " ".join(str(task.pid) for task in tasks))
    signal.signal(signal.SIGTERM, lambda *_: [kill(task.pid, signal.SIGKILL, group=True) for task in tasks])
    told, seen = False, set()
    while len(seen) < len(tasks):
        for node, task in enumerate(tasks):
            if node not in seen and task.poll() is not None:
                seen.add(node)
                if task.returncode and not told and options.get("kill-on-bad-exit") == "1":
                    told = True
                    words = f"Exited with exit code {task.returncode}"
                    sys.stderr.write(f"srun: error: n{node + 1}: task {node}: {words}\n")
                    signal_step(folder, signal.SIGTERM)
        time.sleep(LOOK_S)
    sys.exit(max(code if code >= 0 else 128 - code for code in (task.returncode for task in tasks)))


def signal_step(folder, number):
    """Every process of the step, as Slurm does it."""
    for pid in read(folder / "steps").split():
        kill(pid, number, group=True)


def scancel(argv):
    """A whole job, its step, or its batch script."""
    options, (target,) = options_of(argv)
    job_id, _, step = target.partition(".")
    folder = job_dir(job_id)
    if "signal" in options:
        number = signal.Signals[f"SIG{options['signal']}"]
        signal_step(folder, number) if step else kill(read(folder / "batch"), number, group=False)
        return
    if not (folder / "end").exists():
        write(folder / "cancel", "")
        signal_step(folder, signal.SIGTERM)
        kill(read(folder / "batch"), signal.SIGTERM, group=False)


def state_of(folder):
    """State and exit code."""
    state, _, code = (read(folder / "end") or f"{read(folder / 'state')} 0:0").partition(" ")
    return state, code


def scontrol(argv):
    """show job, show hostnames, show config, requeue."""
    if argv[0] == "requeue":
        write(job_dir(argv[1]) / "requeue", "")
    elif argv[:2] == ["show", "config"]:
        print("Configuration data as of 2026-01-01T00:00:00\nClusterName             = fake")
    elif argv[:2] == ["show", "hostnames"]:
        match = re.fullmatch(r"n\[1-(\d+)\]", argv[2])
        print("\n".join(f"n{node}" for node in range(1, int(match[1]) + 1)) if match else argv[2])
    else:
        show_job(argv[2])


def show_job(job_id):
    """The keys that matter of `scontrol show job`."""
    folder = job_dir(job_id)
    if (folder / "forgotten").exists():
        sys.exit("slurm_load_jobs error: Invalid job id specified")
    options, (state, code) = json.loads(read(folder / "options")), state_of(folder)
    reason = read(HERE / "pending", "None") if state == "PENDING" else "None"
    print(f"JobId={job_id} JobName={options['job-name']}\n   UserId=root(0) GroupId=root(0) MCS_label=N/A\n"
          f"   JobState={state} Reason={reason} Dependency=(null)\n"
          f"   Requeue=1 Restarts={read(folder / 'restarts', '0')} BatchFlag=1 Reboot=0 ExitCode={code}\n"
          f"   NodeList={node_list(options)}\n   Command=(null)\n   WorkDir={os.getcwd()}\n")


def squeue(argv):
    """Some jobs, or all, that have not ended."""
    options, _ = options_of(argv)
    wanted = options["jobs"].split(",") if "jobs" in options else None
    for folder in sorted((HERE / "jobs").glob("[0-9]*")):
        if not (folder / "end").exists() and (wanted is None or folder.name in wanted):
            job = json.loads(read(folder / "options"))
            if options.get("name", job["job-name"]) == job["job-name"]:
                print(options["format"].replace("%i", folder.name).replace("%T", state_of(folder)[0])
                      .replace("%k", job.get("comment", "(null)")))


def sacct(argv):
    """`state|exitcode` of the job that ends the command line."""
    if not (HERE / "accounting").exists():
        sys.exit("Slurm accounting storage is disabled")
    state, code = state_of(job_dir(argv[-1]))
    print(f"{state} by 0|{code}" if state == "CANCELLED" else f"{state}|{code}")


def in_cluster(name, argv):
    """The words without the cluster. Of several clusters this one has to be named, by option or environment."""
    cluster, (options, _) = read(HERE / "cluster"), options_of(argv)
    named = options.get("clusters") or os.environ.get("SLURM_CLUSTERS", "")
    if cluster and name in ("scontrol", "squeue", "sacct", "scancel") and "SLURM_JOB_ID" not in os.environ:
        if "config" not in argv and cluster not in named.split(","):
            sys.exit("slurm_load_jobs error: Invalid job id specified")
        if name == "squeue":
            print(f"CLUSTER: {cluster}")
    return [word for word in argv if not word.startswith("--clusters=")]


def main():
    """By the name it is called by."""
    name, argv = Path(sys.argv[0]).name, sys.argv[1:]
    if name == "fake_slurm.py":
        name, *argv = argv
    with open(HERE / "calls", "a", encoding="utf-8") as calls:
        calls.write(f"{' '.join([name, *argv[:2]])}\n")
    if (HERE / "down").exists() and name not in ("supervise", "srun"):
        sys.exit(f"{name}: error: Unable to contact slurm controller (connect failure)")
    argv = in_cluster(name, argv)
    {"sbatch": sbatch, "srun": srun, "squeue": squeue, "sacct": sacct, "scontrol": scontrol, "scancel": scancel,
     "supervise": supervise}[name](argv)


if __name__ == "__main__":
    main()
