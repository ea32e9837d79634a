#!/usr/bin/env bash
# A Cloud TPU slice, from nothing to a finished run. For your own machine, where gcloud is logged in:
#
#   export PROJECT=my-project ZONE=europe-west4-b NAME=maskvlm TYPE=v5litepod-16 VERSION=v2-alpha-tpuv5-lite
#   export BUCKET=my-bucket SPOT=1
#   launch/tpu_pod.sh watch -- --config=configs/pretrain.py:size=base,data=coco --workdir=/mnt/bucket/runs/base
#
#   create          asks for the slice as a queued resource and waits until it is there
#   install         copies the tracked files to every worker and installs what they need; again after every edit
#   run -- FLAGS    starts maskvlm_jax.main on every worker, where a lost connection does not end it; follows worker 0
#   follow          follows it again; Ctrl-C ends the following only
#   status          of the slice, and of the run on every worker
#   watch -- FLAGS  all of the above, again after a preemption or a crash, until the run ends with status 0
#   stop            SIGTERM: the run saves and ends; a second stop ends it at once
#   delete          gives the slice back
#
# Settings, from the environment:
#   PROJECT ZONE NAME TYPE VERSION   needed: of the slice; VERSION is its software, cloud.google.com/tpu/docs/runtimes
#   SPOT=1       a slice that may be preempted
#   BUCKET       mounted on every worker at MOUNT (/mnt/bucket); needs a hierarchical namespace, see docs/scaling.md
#   RESTARTS=20  watch gives up after as many
#   POLL=30      seconds between two looks at the slice
#   SETTLE=300   seconds that the other workers have to end once worker 0 has
set -euo pipefail
# One file, though a long one: it is copied to the workers and runs its other half there.

TREE=$(cd "$(dirname "$0")/.." && pwd)
: "${SPOT:=}" "${BUCKET:=}" "${MOUNT:=/mnt/bucket}" "${RESTARTS:=20}" "${POLL:=30}" "${SETTLE:=300}"
BUCKET=${BUCKET#gs://}

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 2; }

# On your machine: the slice ------------------------------------------------------------------------------------------

tpus() { gcloud compute tpus "$@" --project="$PROJECT" --zone="$ZONE" --quiet </dev/null; }

ask() {  # ask queued-resources|tpu-vm FIELD: its value, "absent", or "unknown" where the question did not get through
  if tpus "$1" describe "$NAME" --format="value($2)" 2>"$SCRATCH/error"; then
    return
  elif grep -q NOT_FOUND "$SCRATCH/error"; then
    echo absent
  else
    cat "$SCRATCH/error" >&2
    echo unknown
  fi
}

slice_state() {  # absent, unknown, deleting, ready, "waiting: WHY" or "lost: WHY"; a lost slice does not come back
  local queued node
  queued=$(ask queued-resources state.state)
  case $queued in
    ACTIVE) ;;
    absent | unknown) echo "$queued"; return ;;
    DELETING) echo deleting; return ;;
    FAILED | SUSPENDING | SUSPENDED) echo "lost: $queued"; return ;;
    *) echo "waiting: $queued"; return ;;
  esac
  node=$(ask tpu-vm state)
  case $node in
    READY) echo ready ;;
    CREATING | STARTING | RESTARTING | REIMAGING | REPAIRING | unknown) echo "waiting: $node" ;;
    *) echo "lost: $node" ;;
  esac
}

create() {
  local state told='' asked=''
  until state=$(slice_state) && [[ $state == ready ]]; do
    case $state in
      absent)
        [[ -z $asked ]] || die "the slice was deleted"
        say "asking for $NAME: $TYPE in $ZONE${SPOT:+, spot}"
        tpus queued-resources create "$NAME" --node-id="$NAME" --accelerator-type="$TYPE" \
          --runtime-version="$VERSION" ${SPOT:+--spot} || return
        asked=1
        continue
        ;;
      lost*)
        say "error: the slice is $state; delete it before the next try"
        tpus queued-resources describe "$NAME" --format='yaml(state)' >&2 || true
        return 1
        ;;
      "$told") ;;
      *) say "the slice is $state"; told=$state ;;
    esac
    sleep "$POLL"
  done
  say "the slice is ready"
}

delete() { say "deleting $NAME"; tpus queued-resources delete "$NAME" --force; }

# On your machine: the run --------------------------------------------------------------------------------------------

on() {  # on WORKERS COMMAND...: quoted for the shell there. Without ServerAlive a lost machine would never be noticed
  local workers=$1
  shift
  tpus tpu-vm ssh "$NAME" --worker="$workers" --ssh-flag='-o ServerAliveInterval=15 -o ServerAliveCountMax=4' \
    --command="$(printf '%q ' "$@")"
}

worker() {  # worker WORKERS STEP ARGUMENTS...: a step of this script there
  on "$1" env BUCKET="$BUCKET" MOUNT="$MOUNT" SETTLE="$SETTLE" bash maskvlm_jax/launch/tpu_pod.sh "worker-$2" "${@:3}"
}

running() { [[ $(worker 0 status 2>/dev/null) == *running* ]]; }

install() {
  ! running || die "a run is on the slice; stop it first"
  say "copying the tracked files to every worker"
  (
    cd "$TREE"
    git ls-files -z | while IFS= read -r -d '' file; do [[ ! -e $file ]] || printf '%s\0' "$file"; done |
      tar -czf "$SCRATCH/maskvlm_jax.tgz" --null -T -
  ) && tpus tpu-vm scp "$SCRATCH/maskvlm_jax.tgz" "$NAME:" --worker=all &&
    on all bash -c 'mkdir -p maskvlm_jax && tar -xzf maskvlm_jax.tgz -C maskvlm_jax' &&
    worker all install
}

start() { say "starting on every worker"; worker all start "$@"; }

follow() {  # until the run has ended on worker 0; fails where the slice is lost or cannot be reached
  local tries=0
  say "following worker 0; Ctrl-C leaves the run alone"
  until worker 0 follow; do
    case $(slice_state) in
      lost*) say "the slice is lost"; return 1 ;;
      absent | deleting) die "the slice was deleted" ;;
      ready) tries=$((tries + 1)) ;;
    esac
    ((tries < 20)) || return 1
    sleep "$POLL"
  done
}

finish() {  # the run's status: 0 where it is 0 on every worker, else 2 where it is 2 on one, else another that is not 0
  local status worst=0 statuses
  TOLD=$(worker all settle) || return 1
  say "$TOLD"
  statuses=$(awk '/^[^ ]*: / { print ($2 == "exit") ? $3 + 0 : 1 }' <<<"$TOLD" | sort -n)
  for status in ${statuses:-1}; do
    ((status == 0)) || worst=$status
    ((status != 2)) || break
  done
  return "$worst"
}

watch() {
  local restart status=1 mine=''
  for ((restart = 0; restart <= RESTARTS; restart++)); do
    if ((restart > 0)); then
      say "restart $restart of at most $RESTARTS"
      sleep "$POLL"
    fi
    case $(slice_state) in
      lost*) delete || continue; mine='' ;;
      absent | deleting) [[ -z $mine ]] || die "the slice was deleted" ;;  # by somebody who does not want it any more
    esac
    create || continue
    mine=1
    if ! running; then install || continue; fi
    if start "$@"; then
      follow || continue
      finish && return
      status=$?
      [[ $TOLD != *", stopped"* ]] || return "$status"
      sleep "$POLL"  # a preempted slice says so some time after its processes were told
    else
      status=$?
    fi
    # A user's error would be the same again; but where the slice is lost, 2 says that a worker was missing.
    if ((status == 2)) && [[ $(slice_state) == ready ]]; then return 2; fi
  done
  say "error: gave up after $RESTARTS restarts"
  return "$status"
}

status() {
  local state
  state=$(slice_state)
  echo "slice: $state"
  [[ $state != ready ]] || worker all status
}

# On a worker ---------------------------------------------------------------------------------------------------------

STATE=$HOME/.maskvlm_jax  # flags, pid, exit status and log of the run here

alive() { [[ -s $STATE/pid && $(ps -p "$(<"$STATE/pid")" -o args=) == *maskvlm_jax.main* ]]; }

worker_mount() {
  [[ -n $BUCKET ]] && ! mountpoint -q "$MOUNT" || return 0
  sudo mkdir -p "$MOUNT"
  sudo chown "$(id -u)" "$MOUNT"
  # What one host writes the others must see at once. By default names are cached, on large machines for ever.
  gcsfuse --implicit-dirs --metadata-cache-ttl-secs=0 --metadata-cache-negative-ttl-secs=0 "$BUCKET" "$MOUNT"
}

worker_install() {
  cd "$TREE"
  if [[ -n $BUCKET ]] && ! command -v gcsfuse >/dev/null; then
    local source=https://packages.cloud.google.com/apt key=/usr/share/keyrings/cloud.google.asc
    curl -fsS "$source/doc/apt-key.gpg" | sudo tee "$key" >/dev/null
    echo "deb [signed-by=$key] $source gcsfuse-$(lsb_release -cs) main" | sudo tee /etc/apt/sources.list.d/gcsfuse.list
    # A new machine updates itself at first and holds apt's lock.
    sudo apt-get -o DPkg::Lock::Timeout=600 -qq update
    sudo apt-get -o DPkg::Lock::Timeout=600 -qq -y install gcsfuse
  fi
  worker_mount
  if [[ ! -x .venv/bin/python ]]; then
    # The images' own Python is older than requirements.txt asks for; uv brings one.
    python3 -m pip install --user --quiet uv
    python3 -m uv venv --quiet --seed --python 3.12 .venv
  fi
  .venv/bin/pip install --quiet -r requirements.txt 'jax[tpu]' gcsfs
}

worker_start() {
  local flags tries
  flags=$(printf '%q ' "$@")
  mkdir -p "$STATE"
  if alive; then
    [[ $(<"$STATE/flags") == "$flags" ]] || die "another run is on this slice: $(<"$STATE/flags")"
    say "already running"
    return
  fi
  worker_mount
  echo always | sudo tee /sys/kernel/mm/transparent_hugepage/enabled >/dev/null || true  # JAX starts and ends faster
  rm -f "$STATE"/{pid,exit,stopped}
  echo "$flags" >"$STATE/flags"
  # In a session of its own: it has no terminal to lose.
  setsid nohup bash "$0" worker-hold "$@" </dev/null >>"$STATE/log" 2>&1 &
  for ((tries = 0; tries < 100; tries++)); do
    [[ ! -s $STATE/pid ]] || return 0
    sleep 0.1
  done
  die "the run did not start on $(hostname)"
}

worker_hold() {  # stays beside the run and keeps its status
  local status=0 cache=$STATE
  [[ -z $BUCKET ]] || cache=$MOUNT
  cd "$TREE"
  export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$cache/compiled} PYTHONUNBUFFERED=1
  echo "== $(date -u +%FT%TZ) started: $*"
  .venv/bin/python -m maskvlm_jax.main --coordinator=auto "$@" &
  echo $! >"$STATE/pid"
  wait $! || status=$?
  echo "== $(date -u +%FT%TZ) ended with $status"
  echo "$status" >"$STATE/exit"
}

worker_status() {
  local state="no run" tries error
  if alive; then
    state=running
  elif [[ -e $STATE/flags ]]; then
    for ((tries = 0; tries < 20; tries++)); do
      if [[ -s $STATE/exit ]]; then break; fi
      sleep 0.1
    done
    state="exit 137, killed or the machine was restarted"
    [[ ! -s $STATE/exit ]] || state="exit $(<"$STATE/exit")"
    [[ ! -e $STATE/stopped ]] || state+=", stopped"
    error=$(awk '/^== .* started: / { error = "" } /^error: / { error = ", " $0 } END { print error }' "$STATE/log")
    state+=$error
  fi
  echo "$(hostname): $state"
}

worker_follow() {
  if alive; then
    tail --pid="$(<"$STATE/pid")" -s 0.5 -n 30 -F "$STATE/log"
  elif [[ -e $STATE/log ]]; then
    tail -n 30 "$STATE/log"
  fi
}

until_ended() { ! alive || "$@" tail --pid="$(<"$STATE/pid")" -s 0.5 -f /dev/null; }

worker_settle() {
  if ! until_ended timeout "$SETTLE"; then
    kill -KILL "$(<"$STATE/pid")"
    until_ended timeout 10 || true
  fi
  worker_status
}

worker_stop() {
  if alive; then
    touch "$STATE/stopped"
    kill -TERM "$(<"$STATE/pid")"
    until_ended
  fi
  worker_status
}

# ---------------------------------------------------------------------------------------------------------------------

command=${1-}
shift || true
[[ ${1-} != -- ]] || shift
case $command in
  worker-install) worker_install; exit ;;
  worker-start) worker_start "$@"; exit ;;
  worker-hold) worker_hold "$@"; exit ;;
  worker-status) worker_status; exit ;;
  worker-follow) worker_follow; exit ;;
  worker-settle) worker_settle; exit ;;
  worker-stop) worker_stop; exit ;;
  run | watch) (($# > 0)) || die "$command needs the run's flags: $command -- --config=... --workdir=..." ;;
  create | install | follow | status | stop | delete) (($# == 0)) || die "$command takes no arguments: $*" ;;
  *) sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2; exit 2 ;;
esac

missing=
for setting in PROJECT ZONE NAME TYPE VERSION; do [[ -n ${!setting-} ]] || missing+=" $setting"; done
[[ -z $missing ]] || die "these settings are missing:$missing; launch/tpu_pod.sh alone tells what they are"
command -v gcloud >/dev/null || die "there is no gcloud here; https://cloud.google.com/sdk/docs/install"
SCRATCH=$(mktemp -d)
trap 'rm -rf "$SCRATCH"' EXIT

case $command in
  run) start "$@" && follow && finish ;;
  follow) follow && finish ;;
  stop) worker all stop ;;
  *) "$command" "$@" ;;
esac
