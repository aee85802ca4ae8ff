#!/bin/bash
# 'internlm2-7b-guanaco': run demo-0123abcd on Slurm. Rendered by launch; `launch submit` sends exactly this.
#SBATCH --job-name=demo-0123abcd
#SBATCH --nodes=2
#SBATCH --ntasks-per-node=1
#SBATCH --gpus-per-node=8
#SBATCH --cpus-per-task=64
#SBATCH --mem=524288M
#SBATCH --time=0-12:00:00
#SBATCH --signal=B:USR1@90
#SBATCH --partition=gpu
#SBATCH --account=nlp
#SBATCH --qos=long
#SBATCH --constraint='h200&ib'
#SBATCH --output=/dev/null
#SBATCH --open-mode=append
#SBATCH --requeue
set -euo pipefail
RUN_DIR="${LAUNCH_HOME:-$HOME/.local/share/launch}/runs/demo-0123abcd"
mkdir -p "$RUN_DIR/logs"
exec >>"$RUN_DIR/logs/node-0.r${SLURM_RESTART_COUNT:-0}.log" 2>&1
cat >"$RUN_DIR/train.yaml" <<'LAUNCH_END'
settings:
  seed: 42
  output_dir: outputs/demo-0123abcd
  device: auto
model:
  path: /data/internlm2-chat-7b
  revision: null
  trust_remote_code: false
  init: null
  quantization: nf4
  lora:
    r: 64
    alpha: 16
    dropout: 0.1
    targets: null
    rslora: false
    dora: false
    init: zero
    lr_ratio: 1.0
  chat_template: null
  dtype: bf16
  compute: null
  gradient_checkpointing: auto
data:
  sources:
  - path: /data/guanaco.jsonl
    format: null
    split: train
    weight: 1.0
    system: null
    columns: {}
    min: {}
    max: {}
  format: auto
  max_length: 2048
  pack: true
  group_by_length: false
  overlong: keep_turns
  bad_rows: error
  validation: null
  image_dir: null
  cache_dir: null
optimizer:
  lr: 0.0002
  schedule: cosine
  schedule_args: {}
  warmup_ratio: 0.03
  epochs: 3.0
  max_steps: null
  batch_size: 1
  accumulation: 16
  weight_decay: 0.0
  betas:
  - 0.9
  - 0.999
  states: float32
  max_grad_norm: 1.0
  deepspeed:
    zero_stage: 2
    offload: none
    offload_weights: none
    nvme_path: null
    config: null
runtime:
  log_every: 10
  report_to: null
  save_every: 500
  keep: 2
  eval_every: 500
  sample_prompts: []
  sampling:
    temperature: 0.1
    top_p: 0.75
    top_k: 40
    max_new_tokens: null
  max_bad_steps: 3
  log_rows: false
  resume: auto
LAUNCH_END
chmod a+r "$RUN_DIR/train.yaml"  # the image has a user of its own
cat >"$RUN_DIR/node.sh" <<'LAUNCH_END'
#!/bin/bash
set -euo pipefail
name="launch-$LAUNCH_RUN_ID-${SLURM_JOB_ID:-local}-$NODE_RANK"
fabric=()
if [ -d /dev/infiniband ]; then fabric=(--device=/dev/infiniband); fi
user=()
[ "$(id -u)" = 0 ] || user=(--user="$(id -u):$(id -g)" --userns=keep-id)
stop_requested= code=0
not_begun() {  # a stop before the job has begun: nothing to save
  if [ -n "$stop_requested" ]; then exit 75; fi
  exit "$code"
}
trap 'stop_requested=yes; podman stop --time=90 "$name" >/dev/null 2>&1 &' TERM INT
if ! podman image inspect registry.example.com/team/trainer:0.1 >/dev/null 2>&1; then
  mkdir -p "${RUN_DIR%/*/*}/images"
  (
    flock 9
    podman image inspect registry.example.com/team/trainer:0.1 >/dev/null 2>&1 || podman pull registry.example.com/team/trainer:0.1 >/dev/null
  ) 9>"${RUN_DIR%/*/*}/images/trainer-0.1-1e5367cd9ff4.${SLURMD_NODENAME:-local}.lock" || code=$?
fi
if [ "$code" != 0 ] || [ -n "$stop_requested" ]; then not_begun; fi
podman rm --force "$name" >/dev/null 2>&1 || true
(setsid bash -c 'tail --pid="$1" -f /dev/null; podman kill "$2"; podman rm --force "$2"' - $$ "$name" </dev/null >/dev/null 2>&1 &)
podman run --detach --log-driver=passthrough \
  "${user[@]}" \
  --name "$name" \
  --label="launch-run-dir=$RUN_DIR" \
  --network=host \
  --read-only \
  --tmpfs=/tmp:rw,exec,mode=1777 \
  --cap-drop=all \
  --security-opt=no-new-privileges \
  --shm-size=34359738368 \
  --entrypoint= \
  --device=nvidia.com/gpu=all \
  "${fabric[@]}" \
  --env=HF_TOKEN \
  --env=LAUNCH_GPUS_PER_NODE \
  --env=LAUNCH_GRACE_S \
  --env=LAUNCH_JOB_NAME \
  --env=LAUNCH_NODES \
  --env=LAUNCH_PROCESSES_PER_NODE \
  --env=LAUNCH_RUN_ID \
  --env=NCCL_DEBUG \
  --env=PYTHONSAFEPATH \
  --env=PYTHONUNBUFFERED \
  --env=WANDB_API_KEY \
  --env=MASTER_ADDR \
  --env=MASTER_PORT \
  --env=NODE_RANK \
  --env=SLURM_JOB_ID \
  --env=LAUNCH_COMMAND \
  --env=CUDA_VISIBLE_DEVICES \
  --env=HOME=/tmp \
  --env=NCCL_IB_HCA=mlx5_0,mlx5_1 \
  '--env=UGLY=a '"'"'b'"'"' "c" $(d) $$ $e
#f' \
  --volume="$PWD:$PWD" \
  --volume="$RUN_DIR/train.yaml:/etc/launch/train.yaml:ro" \
  --volume="$RUN_DIR/code:/opt/code:ro" \
  --volume='/lustre/data sets:/data:ro' \
  --env=PYTHONPATH=/opt/code \
  --workdir="$PWD" \
  --ulimit=memlock=-1:-1 \
  registry.example.com/team/trainer:0.1 \
  python3 -m trainer.node.entrypoint --config /etc/launch/train.yaml || code=$?
if [ "$code" != 0 ]; then not_begun; fi
while true; do
  podman wait "$name" >/dev/null 2>&1 &
  wait "$!" || true  # it may have been signalled, too; only what inspect says counts
  asked=0
  found=$(podman inspect --format='{{.State.Status}} {{.State.ExitCode}}' "$name" 2>/dev/null) || asked=$?
  case "$asked $found" in
    "0 exited "*) code=${found#* }; break ;;
    "125 "*) code=137; break ;;  # somebody has removed it
  esac
done
podman rm --force "$name" >/dev/null 2>&1 || true
exit "$code"
LAUNCH_END
export LAUNCH_GPUS_PER_NODE=8
export LAUNCH_GRACE_S=90
export LAUNCH_JOB_NAME=internlm2-7b-guanaco
export LAUNCH_NODES=2
export LAUNCH_PROCESSES_PER_NODE=8
export LAUNCH_RUN_ID=demo-0123abcd
export NCCL_DEBUG=WARN
export PYTHONSAFEPATH=1
export PYTHONUNBUFFERED=1
export RUN_DIR
export PYTHONPATH="$RUN_DIR/code${PYTHONPATH:+:$PYTHONPATH}"  # snapshot 5eed5eed5eed5eed
export PYTHONDONTWRITEBYTECODE="${PYTHONDONTWRITEBYTECODE-1}"  # nothing is added to it
. "$RUN_DIR/secrets.env"  # written by submit, mode 0600: HF_TOKEN WANDB_API_KEY
rm -f "$RUN_DIR/exit_code"
export ATTEMPT="${SLURM_RESTART_COUNT:-0}"
export ATTEMPT_DIR="$RUN_DIR/attempts/$ATTEMPT"
mkdir -p "$ATTEMPT_DIR/nodes"
finish() {
  rm -f "$RUN_DIR/secrets.env"
  echo "$1" >"$RUN_DIR/exit_code.part" && mv "$RUN_DIR/exit_code.part" "$RUN_DIR/exit_code"
  exit "$1"
}
note_sizes() {  # every 10 s, to which size each log has grown, for `launch logs --since`
  local never now size file tick=0
  local -A known=()
  while read -r _ size file; do known[$file]=$size; done <"$RUN_DIR/logs/times"
  exec {never}<> <(:)
  while kill -0 "$$"; do
    if [ $((tick++ % 10)) = 0 ]; then
      while read -r size file; do
        printf -v now '%(%s)T' -1
        if [ "$size" -le "${known[$file]:-0}" ]; then continue; fi
        known[$file]=$size
        echo "$((now + 2)) $size $file" || true  # rounded up, as clocks differ
      done < <(cd "$RUN_DIR/logs" && stat --format="%s %n" node-*.log)
    fi
    read -r -t 1 -u "$never" || true  # a sleep of its own would outlive this
  done
} >>"$RUN_DIR/logs/times" 2>/dev/null
note_sizes & noting=$!
disown  # it is no node
trap 'kill "$noting" 2>/dev/null || true' EXIT
cat >"$RUN_DIR/task.sh" <<'LAUNCH_END'
#!/bin/bash
export NODE_RANK="$SLURM_NODEID"
stop_requested= code=0
trap 'stop_requested=yes' TERM INT
bash "$RUN_DIR/node.sh" </dev/null || code=$?
for _ in {1..10}; do  # whoever stops a job signals its processes in turn, perhaps this one last
  if [ "$code" != 75 ] || [ -n "$stop_requested" ]; then break; fi
  sleep 0.3
done
echo "$code $stop_requested" >"$ATTEMPT_DIR/nodes/$NODE_RANK"
[ "$code $stop_requested" = "75 yes" ] || exit "$code"
LAUNCH_END
hosts=$(scontrol show hostnames "$SLURM_JOB_NODELIST")
echo "$hosts" >"$ATTEMPT_DIR/hosts"
export MASTER_ADDR="${hosts%%$'\n'*}"
export MASTER_PORT=$((20000 + (SLURM_JOB_ID) % 10000))
while (exec 3<>"/dev/tcp/127.0.0.1/$MASTER_PORT") 2>/dev/null; do MASTER_PORT=$((MASTER_PORT + 1)); done
export SRUN_CPUS_PER_TASK="$SLURM_CPUS_PER_TASK"
cause() {  # all nodes together ended with $1; the reason is what the first failing one ended with
  local node one stop_requested first=0 ended=0
  for node in $(ls -tr "$ATTEMPT_DIR/nodes"); do
    one= stop_requested=
    read -r one stop_requested <"$ATTEMPT_DIR/nodes/$node" || true
    ended=$((ended + 1))
    if [ "$one" = 75 ] && [ -n "$stop_requested" ]; then one=preempted; fi
    if [ "$first" = 0 ] || [ "$one" = 78 ]; then first=${one:-$1}; fi
  done
  # a node that left nothing was killed: that outweighs a checkpoint of the others, and srun's 0 (it gives up
  # waiting for a node that does not end)
  if [ "$ended" -lt "$LAUNCH_NODES" ] && [[ "$first" = @(0|preempted) ]]; then first=$1; fi
  if [ "$ended" -lt "$LAUNCH_NODES" ] && [ "$first" = 0 ]; then first=137; fi
  if [ "$first" = 0 ]; then echo "$1"; else echo "$first"; fi
}
shown() {  # one value of this job, as Slurm has it now
  local all
  all=$(scontrol show job "$SLURM_JOB_ID") || return
  if [[ "$all" =~ [[:space:]]"$1"=([^[:space:]]*) ]]; then echo "${BASH_REMATCH[1]}"; fi
}
again() {  # into the queue once more; not when somebody has cancelled the job, which is COMPLETING then
  if [ -e "$RUN_DIR/cancelled" ] || [ "$(shown JobState)" != RUNNING ]; then return 1; fi
  echo "launch: $1; waiting to be restarted" >>"$RUN_DIR/logs/node-0.r$ATTEMPT.log"
  scontrol requeue "$SLURM_JOB_ID"
}
background() {  # run it; leaves its exit code in `code`
  rm -f "$ATTEMPT_DIR/code"
  (trap : USR1 TERM; code=0; "$@" || code=$?; echo "$code" >"$ATTEMPT_DIR/code") &
  local pid=$!
  while kill -0 "$pid" 2>/dev/null; do wait "$pid" || true; done
  code=$(cat "$ATTEMPT_DIR/code" 2>/dev/null || echo 137)
}
step() {
srun \
  --nodes="$SLURM_JOB_NUM_NODES" \
  --ntasks-per-node=1 \
  --kill-on-bad-exit=1 \
  --wait=60 \
  --unbuffered \
  --open-mode=append \
  --output="$RUN_DIR/logs/node-%n.r$ATTEMPT.log" \
  bash "$RUN_DIR/task.sh" </dev/null 2>>"$RUN_DIR/logs/node-0.r$ATTEMPT.log"
}
stop_requested= code=0
stop_step() {  # the step, which may not be there yet
  for _ in 1 2 3 4 5; do
    if scancel --signal=TERM "$SLURM_JOB_ID.0"; then return; fi
    sleep 1
  done
}
trap 'stop_requested=yes; stop_step &' USR1
trap : TERM  # the step has got it from Slurm itself
if [ "$code" = 0 ] && [ -n "$stop_requested" ]; then code=preempted; fi
if [ "$code" = 0 ]; then
  background step
  code=$(cause "$code")
  if [ "$code" = 75 ] && [ -n "$stop_requested" ]; then code=preempted; fi
fi
restarts=$(shown Restarts || true)
if [ -n "$restarts" ] && [ "$restarts" != "$ATTEMPT" ]; then exit 0; fi
if [ "$code" = preempted ]; then
  if again "stop requested, and the state was saved"; then exit 0; fi
  if [ -e "$RUN_DIR/cancelled" ]; then finish 75; fi
  exit 75  # Slurm ends it itself; what it puts back into the queue must not have an end written down
fi
if [ "$code" != 0 ] && grep -qiE "^(slurmstepd|srun).*(exceeded memory limit|oom.kill|out of memory)" "$RUN_DIR/logs/node-0.r$ATTEMPT.log"; then
  touch "$ATTEMPT_DIR/out_of_memory"
fi
failures=$(cat "$RUN_DIR/failures" 2>/dev/null || echo 0)
if [ "$code" != 0 ] && [ "$code" != 78 ] && [ "$failures" -lt 3 ]; then
  echo "$((failures + 1))" >"$RUN_DIR/failures"
  if again "ended with exit code $code"; then exit 0; fi
fi
finish "$code"
