"""The back end `nice`: jobs on this machine that leave the processor to everybody else.

A script of ours runs every node as a process group. It writes the run folder in the form that Slurm and this machine
use, too (launcher/backends/hosts), so that logs and exit codes are read by what is there already.
"""

import signal
import time
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from launcher.backends import processes
from launcher.backends.base import Backend, Sent, Submission
from launcher.backends.hosts.attempts import ended_at, latest_attempt, node_rows, read_exit_code
from launcher.backends.hosts.detached import is_alive, start_script
from launcher.backends.hosts.log_files import LogFiles
from launcher.backends.hosts.profile import HostProfile
from launcher.backends.hosts.run_folder import lay_out
from launcher.backends.hosts.script import (
    FINISH,
    TIMES,
    attempt,
    cause,
    heredoc,
    is_final,
    master_port,
    node_log,
    preamble,
    task_script,
)
from launcher.backends.registry import BackendType
from launcher.job.plan import Plan
from launcher.job.rendered import Rendered
from launcher.logs.line import Batch, LogQuery
from launcher.runs.record import Run
from launcher.runs.status import JobStatus, State, exit_words
from launcher.runs.store import RunStore

BACKEND = BackendType(profile=f"{__name__}:NiceProfile", render=f"{__name__}:render", adapter=f"{__name__}:NiceBackend")


class NiceProfile(HostProfile):
    """This machine, at low priority."""

    backend: Literal["nice"] = Field(description="nice.")
    niceness: int = Field(10, ge=1, le=19, description="How far behind other processes.")


def render(plan: Plan[NiceProfile]) -> Rendered:
    """The script that runs every node, and all of them again while the budget for failures lasts."""
    log = node_log("$node")
    start = f'NODE_RANK=$node nice -n {plan.profile.niceness} bash "$RUN_DIR/task.sh" >>{log} 2>&1 </dev/null'
    lines = [
        "#!/bin/bash",
        *preamble(plan),
        'echo "$$" >"$RUN_DIR/pid"',
        *heredoc('"$RUN_DIR/task.sh"', "\n".join(task_script())),
        *TIMES,
        *(["export MASTER_ADDR=127.0.0.1", *master_port("$$")] if plan.payload.rendezvous else []),
        *FINISH,
        *cause(plan),
        "set -m  # every node is a process group",
        "stopping= pids=()",
        "signal_all() {",
        '  for pid in "${pids[@]}"; do kill -TERM -- "-$pid" 2>/dev/null || true; done',
        "}",
        "trap 'stopping=1; signal_all' TERM",
        f"for try in $(seq 0 {plan.restarts}); do",
        *attempt('"$try"'),
        "pids=() code=0",
        f"for node in $(seq 0 {plan.nodes - 1}); do {start} & pids+=($!); done",
        'while [ -n "$(jobs -rp)" ]; do wait -n || signal_all; done',
        'for pid in "${pids[@]}"; do wait "$pid" || code=$?; done',
        'code=$(cause "$code")',
        'code=${code/preempted/75}',
        f'if [ "$code" = 0 ] || [ -n "$stopping" ] || {is_final("$code", plan)}; then break; fi',
        "done",
        'finish "$code"',
    ]
    return Rendered(plan, "\n".join(lines) + "\n")


class NiceBackend(Backend):
    """The script is detached; what it leaves in the run folder says how it is."""

    def __init__(self, store: RunStore, environ: dict[str, str]) -> None:
        self.store = store
        self.environ = environ

    def check(self, rendered: Rendered) -> None:
        """There is nobody to ask."""

    def submit(self, rendered: Rendered, submission: Submission) -> Sent:
        """Start it in a session of its own."""
        lay_out(self.store, submission)
        environ = {key: value for key, value in self.environ.items() if key not in submission.secrets}
        environ["LAUNCH_HOME"] = str(self.store.root.parent)
        pid = start_script(submission.run_dir, submission.job_dir, environ)
        return Sent(f"nice://{rendered.plan.run_id}", {"job_id": str(pid)})

    def status(self, run: Run) -> JobStatus:
        """By the exit code that the script leaves, and by its process."""
        folder = self.store.folder(run.run_id)
        alive = is_alive(folder)  # before the exit code: the script leaves that, and then ends
        code = read_exit_code(folder)
        if (folder / "cancelled").exists() and not alive:
            return JobStatus(State.CANCELLED, "cancelled by the user", code, ended_at=ended_at(folder))
        if code is None and not alive:
            return JobStatus(State.FAILED, "its script is gone")
        state = State.RUNNING if code is None else State.FAILED if code else State.SUCCEEDED
        nodes = node_rows(folder, latest_attempt(folder), state, ["localhost"] * run.nodes, run.exit_codes)
        reason = exit_words(code, run.exit_codes) if code else None
        return JobStatus(state, reason, code, nodes, ended_at(folder))

    def logs(self, run: Run, query: LogQuery) -> Iterator[Batch]:
        """The files that the script writes."""
        files = LogFiles(self.store.folder(run.run_id) / "logs", query.nodes(run.nodes, run.processes_per_node),
                         began=run.created, ended=lambda: self.status(run).state.ended)
        return files.read(query, picks=query.picks(run.processes_per_node))

    def cancel(self, run: Run) -> None:
        """The script passes TERM on to every node."""
        if self.status(run).state.ended:
            return
        folder = self.store.folder(run.run_id)
        (folder / "cancelled").touch()
        pid = run.place.get("job_id") or (folder / "pid").read_text(encoding="utf-8")  # of a submit that was killed
        processes.signal_process(int(pid), signal.SIGTERM)
        while is_alive(folder):
            time.sleep(0.1)
