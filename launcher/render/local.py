"""Plan -> the bash script that runs a job on this machine, every node as a process group of its own. Pure."""

from launcher.plan import Plan
from launcher.render.script import FINISH, master_port, preamble


def render_local(plan: Plan) -> str:
    """The script. It writes `exit_code` last: that file is the run's end."""
    lines = [
        "#!/bin/bash",
        f"# {plan.name!r}: run {plan.run_id} on this machine. Rendered by launch; `launch submit` runs exactly this.",
        *preamble(plan),
        "export MASTER_ADDR=127.0.0.1",
        *master_port("$$"),
        *FINISH,
        *_attempts(plan),
    ]
    return "\n".join(lines) + "\n"


def _attempts(plan: Plan) -> list[str]:
    """Start every node; when one fails end the others; start again while the budget lasts."""
    return [
        "stopping=",
        "trap 'stopping=1; kill -TERM $(jobs -rp) 2>/dev/null || true' TERM INT HUP",
        f"for attempt in $(seq 0 {plan.restarts}); do",
        "  pids=()",
        f"  for node in $(seq 0 {plan.nodes - 1}); do",
        '    NODE_RANK=$node bash "$RUN_DIR/node.sh" >>"$RUN_DIR/logs/node-$node.log" 2>&1 </dev/null &',
        "    pids+=($!)",
        "  done",
        "  first=0",
        '  while [ -n "$(jobs -rp)" ]; do',
        "    one=0; wait -n || one=$?",
        '    if [ "$one" != 0 ] && [ -z "$stopping" ]; then',
        '      [ "$first" != 0 ] || first=$one',
        "      kill -TERM $(jobs -rp) 2>/dev/null || true",
        "    fi",
        "  done",
        "  code=$first",
        '  for pid in "${pids[@]}"; do',
        '    one=0; wait "$pid" || one=$?',
        '    [ "$code" != 0 ] || code=$one',
        '    [ "$one" != 78 ] || code=78  # a wrong configuration ends the same way every time',
        "  done",
        '  if [ "$code" = 0 ] || [ "$code" = 78 ] || [ -n "$stopping" ]; then finish "$code"; fi',
        '  echo "launch: attempt $attempt ended with exit code $code" >>"$RUN_DIR/logs/node-0.log"',
        "done",
        'finish "$code"',
    ]
