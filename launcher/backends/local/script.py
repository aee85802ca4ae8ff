"""Plan -> the bash script that runs a job on this machine, every node as a process group of its own. Pure."""

from launcher.backends.hosts.image import import_lines, needs_import
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
from launcher.backends.local.profile import LocalProfile
from launcher.job.plan import Plan
from launcher.job.rendered import Rendered


def render_local(plan: Plan[LocalProfile]) -> Rendered:
    """The script. It writes `exit_code` last: that file is the run's end."""
    lines = [
        "#!/bin/bash",
        f"# {plan.name!r}: run {plan.run_id} on this machine. Rendered by launch; `launch submit` runs exactly this.",
        *preamble(plan, limit_cpus=True),
        'echo "$$" >"$RUN_DIR/session"',
        'echo "$$" >"$RUN_DIR/pid"  # for a cancel when launch was killed before it knew',
        *heredoc('"$RUN_DIR/task.sh"', "\n".join(task_script())),
        *TIMES,
        *(["export MASTER_ADDR=127.0.0.1", *master_port("$$")] if plan.payload.rendezvous else []),
        *import_lines(plan),
        *FINISH,
        *cause(plan),
        *_GROUPS,
        *_attempts(plan),
    ]
    return Rendered(plan, "\n".join(lines) + "\n")


_GROUPS = [
    "set -m  # every node is a process group, and is signalled whole, as Slurm signals the processes of a step",
    "stopping= failing= pids=()",
    "signal_all() {",
    '  for pid in "${pids[@]}"; do kill "-$1" -- "-$pid" 2>/dev/null || true; done',
    "}",
    "wait_all() {  # to the end of all; when one fails the others are stopped",
    '  while [ -n "$(jobs -rp)" ]; do',
    '    if ! wait -n && [ -z "$stopping$failing" ]; then failing=1; signal_all TERM; fi',
    "  done",
    "  signal_all KILL  # what they have left in the background",
    "  code=0",
    '  for pid in "${pids[@]}"; do wait "$pid" || code=$?; done',
    "}",
    "trap 'stopping=1; signal_all TERM' TERM INT HUP",
]


def _attempts(plan: Plan[LocalProfile]) -> list[str]:
    """Start every node; start all again after a saved preemption, and after a failure while the budget lasts."""
    return [
        *(_import() if needs_import(plan) else []),
        "failures=0 again=0",
        "while true; do",
        *(f"  {line}" for line in attempt('"$again"')),
        "  failing= pids=()",
        f"  for node in $(seq 0 {plan.nodes - 1}); do",
        f'    NODE_RANK=$node bash "$RUN_DIR/task.sh" >>{node_log("$node")} 2>&1 </dev/null &',
        '    echo "$!" >"$ATTEMPT_DIR/$node.pid"',
        '    pids+=("$!")',
        "  done",
        '  if [ -n "$stopping" ]; then signal_all TERM; fi  # it came while they were started',
        "  wait_all",
        '  code=$(cause "$code")',
        "  # the peers of a node that was asked to stop save with it, and may end before it",
        '  if [ "$code" = 75 ] && [ -e "$ATTEMPT_DIR/stop_requested" ]; then code=preempted; fi',
        '  if [ "$code" != preempted ]; then failures=$((failures + 1)); fi',
        "  ended=${code/preempted/75}",
        f'  if [ "$code" = 0 ] || {is_final("$code", plan)} || [ -n "$stopping" ] ||'
        f' [ "$failures" -gt {plan.restarts} ]; then',
        '    finish "$ended"',
        "  fi",
        f'  echo "launch: attempt $again ended with exit code $ended" >>{node_log("0")}',
        "  again=$((again + 1))",
        "done",
    ]


def _import() -> list[str]:
    return [
        'import_image >>"$RUN_DIR/logs/node-0.r0.log" 2>&1 </dev/null &',
        'pids=("$!")',
        "wait_all",
        'if [ "$code" != 0 ] || [ -n "$stopping" ]; then finish "$code"; fi',
    ]
