"""Plan -> the sbatch script of one homogeneous job: srun starts our node script once on every node. Pure."""

import shlex

from launcher.plan import Plan
from launcher.quantities import slurm_mem, slurm_time
from launcher.render.script import FINISH, binds, continued, heredoc, master_port, preamble

MAX_SIGNAL_S = 65535


def render_slurm(plan: Plan) -> str:
    """The script. It writes `exit_code` last: that file is the run's end, with or without Slurm's accounting."""
    lines = [
        "#!/bin/bash",
        f"# {plan.name!r}: run {plan.run_id} on Slurm. Rendered by launch; `launch submit` sends exactly this.",
        *(f"#SBATCH {option}" for option in _options(plan)),
        *preamble(plan, log="batch.log"),
        'rm -rf "$RUN_DIR/exit_code" "$RUN_DIR/srun_code" "$RUN_DIR/nodes"',
        'mkdir "$RUN_DIR/nodes"',
        *heredoc('"$RUN_DIR/task.sh"', "\n".join(_TASK)),
        'hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        'echo "$hosts" >"$RUN_DIR/hosts"',
        "export MASTER_ADDR=\"${hosts%%$'\\n'*}\"",
        *master_port("SLURM_JOB_ID"),
        *(['export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"'] if plan.cpus_per_node else []),
        *FINISH,
        *_CAUSE,
        *_AGAIN,
        *_step(plan),
        *_end(plan),
    ]
    return "\n".join(lines) + "\n"


def _options(plan: Plan) -> list[str]:
    profile = plan.profile
    asked = {
        "job-name": plan.run_id,
        "nodes": plan.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": plan.gpus_per_node or None,
        "cpus-per-task": plan.cpus_per_node,
        "mem": slurm_mem(plan.memory) if plan.memory else None,
        "time": slurm_time(plan.time_limit_s) if plan.time_limit_s else None,
        "signal": f"B:USR1@{_signal_s(plan)}",
        "partition": profile.partition,
        "account": profile.account,
        "qos": profile.qos,
        "constraint": profile.constraint,
        "output": "/dev/null",  # the script's own log lies in the run folder, which only the job can name
        "open-mode": "append",
    }
    return [f"--{name}={shlex.quote(str(value))}" for name, value in asked.items() if value is not None] + ["--requeue"]


def _signal_s(plan: Plan) -> int:
    """How long before its time limit the job is told. At most a quarter of the limit: Slurm may be a minute early,
    and a job that is told when it starts would be started again for ever."""
    quarter = plan.time_limit_s // 4 if plan.time_limit_s else MAX_SIGNAL_S
    return max(1, min(plan.grace_s, quarter, MAX_SIGNAL_S))


# What srun starts on every node. Slurm signals every process of the step, so nothing is passed on here. The file
# tells what the node ended with and whether it had been told to stop.
_TASK = [
    "#!/bin/bash",
    'export NODE_RANK="$SLURM_NODEID"',
    "told= code=0",
    "trap 'told=told' TERM INT",
    'bash "$RUN_DIR/node.sh" </dev/null || code=$?',
    'echo "$code $told" >"$RUN_DIR/nodes/$NODE_RANK"',
    'exit "$code"',
]

_CAUSE = [
    "cause() {  # srun returns the largest code; the reason is what the first failing node ended with",
    "  local node one told first=0 ended=0",
    '  for node in $(ls -tr "$RUN_DIR/nodes"); do',
    "    one= told=",
    '    read -r one told <"$RUN_DIR/nodes/$node" || true',
    "    ended=$((ended + 1))",
    '    if [ "$one" = 75 ] && [ -n "$told" ]; then one=preempted; fi',
    '    if [ "$first" = 0 ] || [ "$one" = 78 ]; then first=${one:-$1}; fi',
    "  done",
    "  # a node that left nothing was killed: that outweighs the others' last checkpoint",
    '  if [ "$first" = preempted ] && [ "$ended" -lt "$SLURM_JOB_NUM_NODES" ]; then first=$1; fi',
    '  if [ "$first" = 0 ]; then echo "$1"; else echo "$first"; fi',
    "}",
]

_AGAIN = [
    "again() {  # into the queue once more; not when somebody has cancelled the job, which is COMPLETING then",
    '  if [ -e "$RUN_DIR/cancelled" ]; then return 1; fi',
    '  if [ "$(squeue --noheader --jobs="$SLURM_JOB_ID" --format=%T)" != RUNNING ]; then return 1; fi',
    '  echo "launch: $1; waiting to be started again" >>"$RUN_DIR/logs/node-0.log"',
    '  scontrol requeue "$SLURM_JOB_ID"',
    "}",
]


def _step(plan: Plan) -> list[str]:
    """srun in the background, so that traps run at once. TERM goes to the step: killing srun would kill the tasks.

    Its code comes through a file, because bash 5.2 loses it (`wait` returns -1) when a trap and the end coincide.
    """
    words = [
        "srun", '--nodes="$SLURM_JOB_NUM_NODES"', "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--wait=60",
        "--unbuffered", "--open-mode=append", '--output="$RUN_DIR/logs/node-%n.log"', *_pyxis(plan),
        'bash "$RUN_DIR/task.sh"',
    ]  # fmt: skip
    return [
        """trap 'scancel --signal=TERM "$SLURM_JOB_ID.0" || true' USR1""",
        "trap : TERM  # the step has got it from Slurm itself",
        "(",
        "trap : USR1 TERM",
        "code=0",
        continued(words) + ' </dev/null 2>>"$RUN_DIR/logs/node-0.log" || code=$?',
        'echo "$code" >"$RUN_DIR/srun_code"',
        ") &",
        "pid=$!",
        'while kill -0 "$pid" 2>/dev/null; do wait "$pid" || true; done',
        'code=$(cat "$RUN_DIR/srun_code" 2>/dev/null || echo 137)',
        'if [ "$code" != 0 ]; then code=$(cause "$code"); fi',
    ]


def _end(plan: Plan) -> list[str]:
    """A saved pre-emption starts again for free, a failure while the budget lasts, a wrong configuration never."""
    return [
        'if [ "$code" = preempted ]; then',
        '  if again "told to stop, and the state was saved"; then exit 0; fi',
        "  finish 75",
        "fi",
        'failures=$(cat "$RUN_DIR/failures" 2>/dev/null || echo 0)',
        f'if [ "$code" != 0 ] && [ "$code" != 78 ] && [ "$failures" -lt {plan.restarts} ]; then',
        '  echo "$((failures + 1))" >"$RUN_DIR/failures"',
        '  if again "ended with exit code $code"; then exit 0; fi',
        "fi",
        'finish "$code"',
    ]


def _pyxis(plan: Plan) -> list[str]:
    if plan.profile.container_runtime != "pyxis":
        return []
    mounts = ",".join(['"$RUN_DIR:$RUN_DIR"', *binds(plan)])
    return [f"--container-image={shlex.quote(_enroot_image(plan.image))}", f"--container-mounts={mounts}",
            "--no-container-mount-home", '--container-workdir="$PWD"']


def _enroot_image(image: str) -> str:
    """A squash file as a path, or `registry#image`, enroot's way to write a registry."""
    if image.endswith(".sqsh"):
        return f"./{image}"
    registry, slash, rest = image.partition("/")
    is_host = slash and ("." in registry or ":" in registry or registry == "localhost")
    return f"docker://{registry}#{rest}" if is_host else f"docker://{image}"
