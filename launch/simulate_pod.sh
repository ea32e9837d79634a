#!/usr/bin/env bash
# The trainer in N processes on this machine, as on N hosts: to try out what a pod would do, faults included.
#
#   launch/simulate_pod.sh 2 --config=configs/pretrain.py --workdir=runs/pod
#   FAULT=kill:1@40 launch/simulate_pod.sh 4 --config=configs/pretrain.py --workdir=runs/pod
#
# FAULT, one of:
#   kill:P@STEP   kill -9 of process P once STEP is logged
#   term:P@STEP   SIGTERM to process P alone
#   slow:P@STEP   process P stands still for STILL seconds (10)
#   disk:P        process P cannot write a file of more than DISK_KB KiB (100), as on a full disk
#   torn          the newest checkpoint is cut before the run starts
#
# DEVICES (1) a process, LOGS for their output (WORKDIR/processes). Where one process fails the others are ended after
# GRACE seconds (20), as a cluster's launcher does; the exit status is the first that is not 0, before 75: that is what
# the others end with where one was lost.
set -euo pipefail
cd "$(dirname "$0")/.."

# The README's environment, where there is one and PYTHON asks for no other.
if [[ -z ${PYTHON:-} && -x .venv/bin/python ]]; then PYTHON=.venv/bin/python; fi

die() { echo "error: $*" >&2; exit 2; }

[[ ${1:-} =~ ^[1-9][0-9]*$ ]] || die "usage: launch/simulate_pod.sh N --config=FILE --workdir=FOLDER ..."
count=$1; shift
workdir=
for flag in "$@"; do [[ $flag == --workdir=* ]] && workdir=${flag#--workdir=}; done
[[ -n $workdir ]] || die "give --workdir=FOLDER"
logs=${LOGS:-$workdir/processes}
IFS=':@' read -r fault victim step <<<"${FAULT:-}::"
case $fault in
  "" | torn) ;;
  kill | term | slow) [[ $victim =~ ^[0-9]+$ && $victim -lt $count && $step =~ ^[0-9]+:*$ ]] || die "FAULT=$FAULT: give $fault:PROCESS@STEP" ;;
  disk) [[ $victim =~ ^[0-9]+$ && $victim -lt $count ]] || die "FAULT=$FAULT: give disk:PROCESS" ;;
  *) die "FAULT=$FAULT is none of kill, term, slow, disk, torn" ;;
esac
step=${step//:/}

if [[ $fault == torn ]]; then
  newest=$(find "$workdir/checkpoints" -mindepth 1 -maxdepth 1 -name '[0-9]*' -printf '%f\n' | grep -x '[0-9]*' | sort -n | tail -1)
  [[ -n $newest ]] || die "there is no checkpoint in $workdir/checkpoints to cut"
  find "$workdir/checkpoints/$newest/params" -type f -size +1k -exec truncate -s -500 {} +
fi

port=$("${PYTHON:-python}" -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
mkdir -p "$logs"
export JAX_PLATFORMS=cpu JAX_NUM_CPU_DEVICES=${DEVICES:-1}
pids=()
for ((process = 0; process < count; process++)); do
  (
    [[ $fault == disk && $victim == "$process" ]] && ulimit -f "${DISK_KB:-100}"
    exec "${PYTHON:-python}" -m maskvlm_jax.main "$@" --coordinator="127.0.0.1:$port" --processes="$count" --process="$process"
  ) >"$logs/$process.log" 2>&1 &
  pids+=($!)
done
trap 'kill -TERM "${pids[@]}" 2>/dev/null' TERM INT
tail -n +1 -F "$logs/0.log" 2>/dev/null &
shown=$!
trap 'sleep 1; kill "$shown" 2>/dev/null' EXIT  # once it has shown the last lines

case $fault in
  kill | term | slow)
    until grep -q "^step $step/" "$logs/0.log" || ! kill -0 "${pids[0]}" 2>/dev/null; do sleep 0.1; done
    case $fault in
      kill) kill -KILL "${pids[$victim]}" || true ;;
      term) kill -TERM "${pids[$victim]}" || true ;;
      slow) kill -STOP "${pids[$victim]}"; sleep "${STILL:-10}"; kill -CONT "${pids[$victim]}" ;;
    esac
    ;;
esac

status=0 left=$count
while ((left > 0)); do
  for process in "${!pids[@]}"; do
    kill -0 "${pids[$process]}" 2>/dev/null && continue
    code=0
    wait "${pids[$process]}" || code=$?
    unset "pids[$process]"
    left=$((left - 1))
    if ((code != 0 && status == 0)); then deadline=$((SECONDS + ${GRACE:-20})); fi
    if ((code != 0 && (status == 0 || status == 75))); then status=$code; fi
  done
  if ((status != 0 && left > 0 && SECONDS > deadline)); then kill -KILL "${pids[@]}" 2>/dev/null || true; fi
  sleep 0.2
done
for ((process = 1; process < count; process++)); do
  grep -h "^error" "$logs/$process.log" | sed "s/^/process $process: /" >&2 || true
done
exit "$status"
