"""Plan -> the sbatch script of one homogeneous job: srun starts our node script once on every node. Pure."""

import shlex

from launcher.backends.hosts.image import image_word, import_lines, needs_import
from launcher.backends.hosts.script import (
    FINISH,
    TIMES,
    attempt,
    binds,
    cause,
    continued,
    heredoc,
    is_not_final,
    master_port,
    node_log,
    preamble,
    task_script,
)
from launcher.backends.slurm.profile import SlurmProfile
from launcher.job.plan import Plan
from launcher.job.quantities import slurm_mem, slurm_time
from launcher.job.rendered import Rendered

MAX_SIGNAL_S = 65535
_MEETING = ["export MASTER_ADDR=\"${hosts%%$'\\n'*}\"", *master_port("SLURM_JOB_ID")]


def render_slurm(plan: Plan[SlurmProfile]) -> Rendered:
    """The script. It writes `exit_code` last: that file is the run's end, with or without Slurm's accounting."""
    lines = [
        "#!/bin/bash",
        f"# {plan.name!r}: run {plan.run_id} on Slurm. Rendered by launch; `launch submit` sends exactly this.",
        *(f"#SBATCH {option}" for option in _options(plan)),
        *preamble(plan, log="node-0.r${SLURM_RESTART_COUNT:-0}.log"),
        'rm -f "$RUN_DIR/exit_code"',
        *attempt('"${SLURM_RESTART_COUNT:-0}"'),
        *FINISH,
        *_setup(plan),
        *TIMES,
        *heredoc('"$RUN_DIR/task.sh"', _task()),
        'hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")',
        'echo "$hosts" >"$ATTEMPT_DIR/hosts"',
        *(_MEETING if plan.payload.rendezvous else []),
        *(['export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"'] if plan.cpus_per_node else []),
        *import_lines(plan),
        *cause(plan),
        *_SHOWN,
        *_AGAIN,
        *_BACKGROUND,
        *_step(plan),
        *_end(plan),
    ]
    return Rendered(plan, "\n".join(lines) + "\n")


def _options(plan: Plan[SlurmProfile]) -> list[str]:
    profile, job = plan.profile, plan.options
    gpu_type, exclusive = profile.asked("gpu_type", job), profile.asked("exclusive", job)
    gpus = f"{gpu_type}:{plan.gpus_per_node}" if gpu_type else plan.gpus_per_node
    asked = {
        "job-name": plan.run_id,
        "nodes": plan.nodes,
        "ntasks-per-node": 1,
        "gpus-per-node": gpus if plan.gpus_per_node else None,
        "cpus-per-task": plan.cpus_per_node,
        "cpus-per-gpu": _cpus_per_gpu(plan),
        "mem": slurm_mem(plan.memory) if plan.memory else None,
        "time": slurm_time(plan.time_limit_s) if plan.time_limit_s else None,
        "signal": f"B:USR1@{_signal_s(plan)}",
        **{name: profile.asked(name, job) for name in (
            "partition", "account", "qos", "constraint", "reservation", "exclude", "licenses")},
        "exclusive": exclusive if isinstance(exclusive, str) else None,
        "output": "/dev/null",  # the script's own log lies in the run folder, which only the job can name
        "open-mode": "append",
    }
    words = [f"--{name}={shlex.quote(str(value))}" for name, value in asked.items() if value is not None]
    flags = ["--exclusive"] if exclusive is True else []
    return [*words, *flags, "--requeue", *map(_quoted, profile.all_of("options", job))]


def _cpus_per_gpu(plan: Plan[SlurmProfile]) -> int | None:
    if plan.cpus_per_node or not plan.gpus_per_node:
        return None
    number: int | None = plan.profile.asked("cpus_per_gpu", plan.options)
    return number


def _quoted(option: str) -> str:
    """sbatch takes its lines apart as a shell does."""
    name, equals, value = option.partition("=")
    return f"{name}={shlex.quote(value)}" if equals else name


def _setup(plan: Plan[SlurmProfile]) -> list[str]:
    """The lines of the cluster and the job; srun passes what they change on to every node. Modules are made available
    as a login shell does it, and may use variables that are not set."""
    lines = plan.profile.all_of("setup", plan.options)
    if not lines:
        return []
    return [
        "setup_line() {  # after each: its exit code",
        '  if [ "$1" = 0 ]; then return; fi',
        "  trap - EXIT",
        '  echo "$setup" >"$ATTEMPT_DIR/failed_setup"',
        '  echo "launch: sbatch.setup: exit code $1: $setup"',
        '  finish "$1"',
        "}",
        "trap 'setup_line \"$(($? ? $? : 1))\"' EXIT  # a line that ends this script has failed, even with 0",
        "trap 'trap - EXIT; exit 143' TERM USR1  # but of a stop Slurm itself knows the end",
        "set +euo pipefail  # modules and virtual environments were not written for these",
        "job_dir=$PWD",
        "if ! type module >/dev/null 2>&1; then",
        "  for file in /etc/profile.d/*mod*.sh; do",
        '    if [ -r "$file" ]; then . "$file" || true; fi',
        "  done",
        "fi",
        *(f"setup={shlex.quote(line)}\n{line}\nsetup_line $?" for line in lines),
        "trap - EXIT TERM USR1",
        'cd "$job_dir"  # where relative paths of the job start',
        "set -euo pipefail",
    ]


def _signal_s(plan: Plan[SlurmProfile]) -> int:
    """How long before its time limit the job is asked to stop. At most a quarter of the limit: Slurm may be a minute
    early, and a job that is asked to stop when it starts would be restarted for ever."""
    quarter = plan.time_limit_s // 4 if plan.time_limit_s else MAX_SIGNAL_S
    return max(1, min(plan.grace_s, quarter, MAX_SIGNAL_S))


_SHOWN = [
    "shown() {  # one value of this job, as Slurm has it now",
    "  local all",
    '  all=$(scontrol show job "$SLURM_JOB_ID") || return',
    '  if [[ "$all" =~ [[:space:]]"$1"=([^[:space:]]*) ]]; then echo "${BASH_REMATCH[1]}"; fi',
    "}",
]

_AGAIN = [
    "again() {  # into the queue once more; not when somebody has cancelled the job, which is COMPLETING then",
    '  if [ -e "$RUN_DIR/cancelled" ] || [ "$(shown JobState)" != RUNNING ]; then return 1; fi',
    f'  echo "launch: $1; waiting to be restarted" >>{node_log("0")}',
    '  scontrol requeue "$SLURM_JOB_ID"',
    "}",
]

# In the background, so that traps run at once. The code comes through a file, because bash 5.2 loses it (`wait` returns
# -1) when a trap and the end coincide.
_BACKGROUND = [
    "background() {  # run it; leaves its exit code in `code`",
    '  rm -f "$ATTEMPT_DIR/code"',
    '  (trap : USR1 TERM; code=0; "$@" || code=$?; echo "$code" >"$ATTEMPT_DIR/code") &',
    "  local pid=$!",
    '  while kill -0 "$pid" 2>/dev/null; do wait "$pid" || true; done',
    '  code=$(cat "$ATTEMPT_DIR/code" 2>/dev/null || echo 137)',
    "}",
]


def _task() -> str:
    """A node that was asked to stop and has saved ends with 0 for srun, which would kill those that have not yet at any
    other code."""
    last = '[ "$code $stop_requested" = "75 yes" ] || exit "$code"'
    return "\n".join(task_script('export NODE_RANK="$SLURM_NODEID"', last=last))


def _step(plan: Plan[SlurmProfile]) -> list[str]:
    """The image, if it has to be made, and srun. TERM goes to the step: killing srun would kill the tasks."""
    words = [
        "srun", '--nodes="$SLURM_JOB_NUM_NODES"', "--ntasks-per-node=1", "--kill-on-bad-exit=1", "--wait=60",
        "--unbuffered", "--open-mode=append", f"--output={node_log('%n')}", *_pyxis(plan), 'bash "$RUN_DIR/task.sh"',
    ]  # fmt: skip
    begin = [f"background import_image >>{node_log('0')} 2>&1"] if needs_import(plan) else []
    return [
        "step() {",
        continued(words) + f" </dev/null 2>>{node_log('0')}",
        "}",
        "stop_requested= code=0",
        "stop_step() {  # the step, which may not be there yet",
        "  for _ in 1 2 3 4 5; do",
        '    if scancel --signal=TERM "$SLURM_JOB_ID.0"; then return; fi',
        "    sleep 1",
        "  done",
        "}",
        "trap 'stop_requested=yes; stop_step &' USR1",
        "trap : TERM  # the step has got it from Slurm itself",
        *begin,
        'if [ "$code" = 0 ] && [ -n "$stop_requested" ]; then code=preempted; fi',
        'if [ "$code" = 0 ]; then',
        "  background step",
        '  code=$(cause "$code")',
        '  if [ "$code" = 75 ] && [ -n "$stop_requested" ]; then code=preempted; fi',
        "fi",
    ]


# Slurm's own state of such a job may be FAILED: only what it prints tells (JobAcctGatherParams=OverMemoryKill).
_MEMORY_WORDS = "^(slurmstepd|srun).*(exceeded memory limit|oom.kill|out of memory)"


def _end(plan: Plan[SlurmProfile]) -> list[str]:
    """A saved preemption starts again for free, a failure while the budget lasts, a wrong configuration never. An
    attempt that Slurm itself has put back into the queue (a lost node, a job of higher priority) leaves no word."""
    return [
        'restarts=$(shown Restarts || true)',
        'if [ -n "$restarts" ] && [ "$restarts" != "$ATTEMPT" ]; then exit 0; fi',
        'if [ "$code" = preempted ]; then',
        '  if again "stop requested, and the state was saved"; then exit 0; fi',
        '  if [ -e "$RUN_DIR/cancelled" ]; then finish 75; fi',
        "  exit 75  # Slurm ends it itself; what it puts back into the queue must not have an end written down",
        "fi",
        f'if [ "$code" != 0 ] && grep -qiE "{_MEMORY_WORDS}" {node_log("0")}; then',
        '  touch "$ATTEMPT_DIR/out_of_memory"',
        "fi",
        'failures=$(cat "$RUN_DIR/failures" 2>/dev/null || echo 0)',
        f'if [ "$code" != 0 ] && {is_not_final("$code", plan)} && [ "$failures" -lt {plan.restarts} ]; then',
        '  echo "$((failures + 1))" >"$RUN_DIR/failures"',
        '  if again "ended with exit code $code"; then exit 0; fi',
        "fi",
        'finish "$code"',
    ]


def _pyxis(plan: Plan[SlurmProfile]) -> list[str]:
    if plan.profile.container_runtime != "pyxis":
        return []
    args = [shlex.quote(word) for word in plan.profile.container_args]
    mounts = ",".join(['"$RUN_DIR:$RUN_DIR"', *binds(plan)])
    return [f"--container-image={image_word(plan)}", f"--container-mounts={mounts}",
            "--no-container-mount-home", '--container-workdir="$PWD"', *args]
