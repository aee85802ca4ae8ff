"""The parts that the bash scripts of Slurm and of this machine share. Pure; every word is quoted by shlex."""

import shlex

from launcher.backends.env import container_python_path, launch_env
from launcher.backends.hosts.image import image_word, pull_lines
from launcher.backends.hosts.profile import HostProfile
from launcher.job.payload import STOPPED
from launcher.job.plan import CONFIG_FOLDER, Plan
from launcher.job.profile import CONTAINER_CODE

RUN_DIR_LABEL = "launch-run-dir"
CONTAINER_TMP = "/tmp"  # noqa: S108  (a tmpfs inside the container)


FINISH = [
    "finish() {",
    '  rm -f "$RUN_DIR/secrets.env"',
    '  echo "$1" >"$RUN_DIR/exit_code.part" && mv "$RUN_DIR/exit_code.part" "$RUN_DIR/exit_code"',
    '  exit "$1"',
    "}",
]


def is_final(word: str, plan: Plan[HostProfile]) -> str:
    """A bash condition: the exit code in `word` is one after which the job is not started again."""
    return " || ".join(f'[ "{word}" = {code} ]' for code in plan.payload.exit_codes.final) or "false"


def is_not_final(word: str, plan: Plan[HostProfile]) -> str:
    """The opposite."""
    return " && ".join(f'[ "{word}" != {code} ]' for code in plan.payload.exit_codes.final) or "true"


def cause(plan: Plan[HostProfile]) -> list[str]:
    """Lines that define `cause`: what a run ended with, from what its nodes ended with."""
    return [
        "cause() {  # all nodes together ended with $1; the reason is what the first failing one ended with",
        "  local node one stop_requested first=0 ended=0",
        '  for node in $(ls -tr "$ATTEMPT_DIR/nodes"); do',
        "    one= stop_requested=",
        '    read -r one stop_requested <"$ATTEMPT_DIR/nodes/$node" || true',
        "    ended=$((ended + 1))",
        f'    if [ "$one" = {STOPPED} ] && [ -n "$stop_requested" ]; then one=preempted; fi',
        f'    if [ "$first" = 0 ] || {is_final("$one", plan)}; then first=${{one:-$1}}; fi',
        "  done",
        "  # a node that left nothing was killed: that outweighs a checkpoint of the others, and srun's 0 (it gives up",
        "  # waiting for a node that does not end)",
        '  if [ "$ended" -lt "$LAUNCH_NODES" ] && [[ "$first" = @(0|preempted) ]]; then first=$1; fi',
        '  if [ "$ended" -lt "$LAUNCH_NODES" ] && [ "$first" = 0 ]; then first=137; fi',
        '  if [ "$first" = 0 ]; then echo "$1"; else echo "$first"; fi',
        "}",
    ]


TIMES = [
    "note_sizes() {  # every 10 s, to which size each log has grown, for `launch logs --since`",
    "  local never now size file tick=0",
    "  local -A known=()",
    '  while read -r _ size file; do known[$file]=$size; done <"$RUN_DIR/logs/times"',
    "  exec {never}<> <(:)",
    '  while kill -0 "$$"; do',
    "    if [ $((tick++ % 10)) = 0 ]; then",
    "      while read -r size file; do",
    "        printf -v now '%(%s)T' -1",
    '        if [ "$size" -le "${known[$file]:-0}" ]; then continue; fi',
    '        known[$file]=$size',
    '        echo "$((now + 2)) $size $file" || true  # rounded up, as clocks differ',
    '      done < <(cd "$RUN_DIR/logs" && stat --format="%s %n" node-*.log)',
    "    fi",
    '    read -r -t 1 -u "$never" || true  # a sleep of its own would outlive this',
    "  done",
    '} >>"$RUN_DIR/logs/times" 2>/dev/null',
    "note_sizes & noting=$!",
    "disown  # it is no node",
    "trap 'kill \"$noting\" 2>/dev/null || true' EXIT",
]


# Between the well-known ports and the system's ephemeral ones.
_FIRST_PORT, _PORTS = 20000, 10000


def master_port(number: str) -> list[str]:
    """Lines that export MASTER_PORT: drawn from `number`, or the next one at which nothing answers on node 0, where
    the script runs."""
    return [
        f"export MASTER_PORT=$(({_FIRST_PORT} + ({number}) % {_PORTS}))",
        'while (exec 3<>"/dev/tcp/127.0.0.1/$MASTER_PORT") 2>/dev/null; do MASTER_PORT=$((MASTER_PORT + 1)); done',
    ]


def attempt(number: str) -> list[str]:
    """Lines that begin the attempt of that number: a folder and log files of its own, so that what an earlier one left
    running on a lost node cannot be taken for it."""
    return [
        f"export ATTEMPT={number}",
        'export ATTEMPT_DIR="$RUN_DIR/attempts/$ATTEMPT"',
        'mkdir -p "$ATTEMPT_DIR/nodes"',
    ]


def node_log(node: str) -> str:
    """The log of one node in this attempt, as a word of bash."""
    return f'"$RUN_DIR/logs/node-{node}.r$ATTEMPT.log"'


def task_script(*first: str, last: str = 'exit "$code"') -> list[str]:
    """What is started once for every node; it needs NODE_RANK, from the lines `first` if need be. A stop signals all
    its processes at once, so nothing is passed on here. The file that it leaves tells what the node ended with, and
    whether a stop had been requested. `last`: the line that ends it."""
    return [
        "#!/bin/bash",
        *first,
        "stop_requested= code=0",
        "trap 'stop_requested=yes' TERM INT",
        'bash "$RUN_DIR/node.sh" </dev/null || code=$?',
        "for _ in {1..10}; do  # whoever stops a job signals its processes in turn, perhaps this one last",
        '  if [ "$code" != 75 ] || [ -n "$stop_requested" ]; then break; fi',
        "  sleep 0.3",
        "done",
        'echo "$code $stop_requested" >"$ATTEMPT_DIR/nodes/$NODE_RANK"',
        last,
    ]


def preamble(plan: Plan[HostProfile], *, log: str | None = None, limit_cpus: bool = False) -> list[str]:
    """Where the run lies, its log, its files and its environment. The run folder is found at run time."""
    lines = [
        "set -euo pipefail",
        f'RUN_DIR="${{LAUNCH_HOME:-$HOME/.local/share/launch}}/runs/{plan.run_id}"',
        'mkdir -p "$RUN_DIR/logs"',
    ]
    if log:
        lines.append(f'exec >>"$RUN_DIR/logs/{log}" 2>&1')
    return [*lines, *_files(plan, limit_cpus=limit_cpus), *_exports(plan)]


def _files(plan: Plan[HostProfile], *, limit_cpus: bool) -> list[str]:
    lines = []
    for name, text in plan.payload.files.items():
        lines += heredoc(f'"$RUN_DIR/{name}"', text)
        lines.append(f'chmod a+r "$RUN_DIR/{name}"  # the image has a user of its own')
    lines += heredoc('"$RUN_DIR/node.sh"', "\n".join(node_script(plan, limit_cpus=limit_cpus)) + "\n")
    return lines


def _exports(plan: Plan[HostProfile]) -> list[str]:
    lines = [f"export {key}={shlex.quote(value)}" for key, value in sorted(launch_env(plan).items())]
    lines.append("export RUN_DIR")
    if plan.code_digest:
        lines.append(f'export PYTHONPATH="$RUN_DIR/code${{PYTHONPATH:+:$PYTHONPATH}}"  # snapshot {plan.code_digest}')
        lines.append('export PYTHONDONTWRITEBYTECODE="${PYTHONDONTWRITEBYTECODE-1}"  # nothing is added to it')
    if plan.secrets:
        lines.append(f'. "$RUN_DIR/secrets.env"  # written by submit, mode 0600: {" ".join(plan.secrets)}')
    return lines


def node_script(plan: Plan[HostProfile], *, limit_cpus: bool) -> list[str]:
    """What runs once on every node: the command, bare or in a container. Reads NODE_RANK and MASTER_*."""
    head = ["#!/bin/bash", "set -euo pipefail"]
    runtime = plan.profile.container_runtime
    if runtime in ("podman", "docker"):
        return head + _oci_container(plan, runtime, limit_cpus=limit_cpus)
    if runtime == "apptainer":
        return head + _apptainer(plan)
    if runtime == "pyxis":
        return head + _inside_pyxis(plan)
    return [*head, f"exec {_with_env(plan)}" + _command(plan, '"$RUN_DIR/{}"')]


def _with_env(plan: Plan[HostProfile], python_path: str | None = None) -> str:
    """The job's own `env`, given to it at its start: no script of launch may depend on it (PATH, IFS, UID, ...)."""
    code = '"$RUN_DIR/code":' if plan.code_digest else ""
    words = [f"{key}={shlex.quote(value)}" for key, value in sorted(plan.env.items()) if key != "PYTHONPATH"]
    if python_path is not None:
        words.append(f"PYTHONPATH={shlex.quote(python_path)}")
    elif "PYTHONPATH" in plan.env:
        words.append(f"PYTHONPATH={code}{shlex.quote(plan.env['PYTHONPATH'])}")
    return f"env {' '.join(words)} " if words else ""


def _inside_pyxis(plan: Plan[HostProfile]) -> list[str]:
    """pyxis starts the container around the task. The image's own variables win there, so the job's come again."""
    path = container_python_path(plan) if plan.code_digest else plan.env.get("PYTHONPATH")
    return [f"export HOME={CONTAINER_TMP}", f"exec {_with_env(plan, path)}{_command(plan)}"]


def _command(plan: Plan[HostProfile], path: str = f"{CONFIG_FOLDER}/{{}}") -> str:
    """The payload's command; `path` is where one of its files is found, as a word of bash."""
    return " ".join(plan.payload.words(path.format, shlex.quote))


def _oci_container(plan: Plan[HostProfile], runtime: str, *, limit_cpus: bool) -> list[str]:
    """podman or docker. The container is outside the job's process tree: stopped, waited for, removed by name."""
    words = ['--name "$name"', f'--label="{RUN_DIR_LABEL}=$RUN_DIR"', "--network=host", "--read-only",
             f"--tmpfs={CONTAINER_TMP}:rw,exec,mode=1777", "--cap-drop=all", "--security-opt=no-new-privileges",
             f"--shm-size={plan.shm}", "--entrypoint="]
    if plan.gpus_per_node:
        words.append("--device=nvidia.com/gpu=all" if runtime == "podman" else "--gpus=all")
    words += _fabric_words(plan)
    if plan.cpus_per_node and limit_cpus:
        words.append(f"--cpus={plan.cpus_per_node}")
    words += [f"--env={name}" for name in _env_names(plan)]
    words += [f"--env=HOME={CONTAINER_TMP}"]
    words += [shlex.quote(f"--env={name}={value}") for name, value in sorted(plan.env.items())]
    words += [*_volumes(plan), '--workdir="$PWD"']
    words += map(shlex.quote, plan.profile.container_args)
    user = ['--user="$(id -u):$(id -g)"', *(["--userns=keep-id"] if runtime == "podman" else [])]
    command = [image_word(plan), _command(plan)]
    return [
        'name="launch-$LAUNCH_RUN_ID-${SLURM_JOB_ID:-local}-$NODE_RANK"',
        *_fabric(plan, "--device=/dev/infiniband"),
        "user=()",
        f'[ "$(id -u)" = 0 ] || user=({" ".join(user)})',
        "stop_requested= code=0",
        "not_begun() {  # a stop before the job has begun: nothing to save",
        '  if [ -n "$stop_requested" ]; then exit 75; fi',
        '  exit "$code"',
        "}",
        f"trap 'stop_requested=yes; {runtime} stop --time={plan.grace_s} \"$name\" >/dev/null 2>&1 &' TERM INT",
        *pull_lines(plan, runtime),
        'if [ "$code" != 0 ] || [ -n "$stop_requested" ]; then not_begun; fi',
        f'{runtime} rm --force "$name" >/dev/null 2>&1 || true',
        *_lifeline(runtime),
        *(_podman_run if runtime == "podman" else _docker_run)(['"${user[@]}"', *words, *command]),
        f'{runtime} rm --force "$name" >/dev/null 2>&1 || true',
        'exit "$code"',
    ]


def _podman_run(words: list[str]) -> list[str]:
    """No client stays between the container and the log: Slurm's signals reach every process of a step, and a client
    that is sent TERM takes the container's last lines and its exit code with it."""
    state = "{{.State.Status}} {{.State.ExitCode}}"
    return [
        continued(["podman run --detach --log-driver=passthrough", *words]) + " || code=$?",
        'if [ "$code" != 0 ]; then not_begun; fi',
        "while true; do",
        '  podman wait "$name" >/dev/null 2>&1 &',
        '  wait "$!" || true  # it may have been signalled, too; only what inspect says counts',
        "  asked=0",
        f"""  found=$(podman inspect --format='{state}' "$name" 2>/dev/null) || asked=$?""",
        '  case "$asked $found" in',
        '    "0 exited "*) code=${found#* }; break ;;',
        '    "125 "*) code=137; break ;;  # somebody has removed it',
        "  esac",
        "done",
    ]


def _docker_run(words: list[str]) -> list[str]:
    """The client asks a daemon, which Slurm's signals do not reach; it ends with the container's code."""
    return [
        continued(["docker run --sig-proxy=false", *words]) + " &",
        "pid=$!",
        'while kill -0 "$pid" 2>/dev/null; do wait "$pid" || true; done',
        "code=0",
        'wait "$pid" || code=$?',
        'code=$(docker wait "$name" 2>/dev/null || echo "$code")  # without a container the client tells why',
    ]


def _lifeline(runtime: str) -> list[str]:
    """Ends the container when this script is killed without a word; it polls once a second, from outside the job."""
    watch = f'tail --pid="$1" -f /dev/null; {runtime} kill "$2"; {runtime} rm --force "$2"'
    return [f"(setsid bash -c {shlex.quote(watch)} - $$ \"$name\" </dev/null >/dev/null 2>&1 &)"]


def _apptainer(plan: Plan[HostProfile]) -> list[str]:
    words = ["exec apptainer exec", "--containall", "--no-home", '--pwd="$PWD"']
    if plan.gpus_per_node:
        words.append("--nv")
    words += _fabric_words(plan)
    words += [f"--bind={volume}" for volume in binds(plan)]
    words += map(shlex.quote, plan.profile.container_args)
    # --env would split values at commas, and show them to `ps`
    lines = [
        f"for key in {' '.join(_env_names(plan))}; do",
        '  if [ -n "${!key+set}" ]; then export "APPTAINERENV_$key=${!key}"; fi',
        "done",
        *(f"export APPTAINERENV_{name}={shlex.quote(value)}" for name, value in sorted(plan.env.items())
          if name != "HOME"),
    ]
    if plan.code_digest:
        lines.append(f"export APPTAINERENV_PYTHONPATH={shlex.quote(container_python_path(plan))}")
    home = f"env HOME={shlex.quote(plan.env.get('HOME', CONTAINER_TMP))}"  # apptainer allows no APPTAINERENV_HOME
    return [*_fabric(plan, "--bind=/dev/infiniband"), *lines,
            continued([*words, image_word(plan), f"{home} {_command(plan)}"])]


def _fabric(plan: Plan[HostProfile], option: str) -> list[str]:
    """Without the machine's InfiniBand devices, NCCL takes TCP between nodes, and says so to nobody."""
    if not _fabric_words(plan):
        return []
    return ["fabric=()", f"if [ -d /dev/infiniband ]; then fabric=({option}); fi"]


def _fabric_words(plan: Plan[HostProfile]) -> list[str]:
    return ['"${fabric[@]}"'] if plan.nodes > 1 and plan.gpus_per_node else []


def _env_names(plan: Plan[HostProfile]) -> list[str]:
    rank = ["MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "SLURM_JOB_ID", "LAUNCH_COMMAND"]
    extra = ["CUDA_VISIBLE_DEVICES"] if plan.gpus_per_node else []
    return sorted({*launch_env(plan), *plan.secrets}) + rank + extra


def _volumes(plan: Plan[HostProfile]) -> list[str]:
    words = [f"--volume={bind}" for bind in binds(plan)]
    if plan.code_digest:
        words.append(f"--env=PYTHONPATH={shlex.quote(container_python_path(plan))}")
    return words


def binds(plan: Plan[HostProfile]) -> list[str]:
    """What the container sees of the node: `source:target[:ro]`, quoted for the shell."""
    found = ['"$PWD:$PWD"']
    found += [f'"$RUN_DIR/{name}:{CONFIG_FOLDER}/{name}:ro"' for name in plan.payload.files]
    if plan.code_digest:
        found.append(f'"$RUN_DIR/code:{CONTAINER_CODE}:ro"')
    for mount in plan.mounts:
        mode = ":ro" if mount.read_only else ""
        found.append(shlex.quote(f"{mount.host_path}:{mount.path}{mode}"))
    return found


def continued(words: list[str]) -> str:
    """One command, a word a line."""
    return " \\\n  ".join(words)


def heredoc(target: str, text: str) -> list[str]:
    """Lines that write `text` as it is: the quoted delimiter stops every expansion."""
    end = "LAUNCH_END"
    while end in text:
        end += "_"
    return [f"cat >{target} <<'{end}'", *text.rstrip("\n").split("\n"), end]
