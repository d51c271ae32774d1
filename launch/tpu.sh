#!/usr/bin/env bash
# Cloud TPU slices: create, run the same command on all workers, follow, delete.
#
#   launch/tpu.sh create NAME v5litepod-16 [--spot]
#   launch/tpu.sh run    NAME -- --config=configs/cfam.py:ufine6926 \
#                                --workdir=gs://BUCKET/runs/cfam \
#                                --config.data.root=gs://BUCKET/data
#   launch/tpu.sh logs   NAME
#   launch/tpu.sh resume NAME v5litepod-16 -- ...    waits for a slice, and again
#                                                    after every preemption
#   launch/tpu.sh delete NAME
#
# --dry-run as the first argument prints the commands instead of running them.
# PROJECT, ZONE, VERSION (of the TPU's software) and SOURCE (what pip installs on
# the workers) come from the environment.
set -euo pipefail

dry_run=
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=yes
  shift
fi
if [[ $# -lt 2 ]]; then
  sed -n '2,15p' "$0" >&2
  exit 2
fi
action=$1
name=$2
shift 2

: "${PROJECT:?set PROJECT to the Google Cloud project}"
: "${ZONE:?set ZONE, for example us-west4-a}"
where=(--project="$PROJECT" --zone="$ZONE")
# What workers install: a git address, or a wheel that they can reach.
source=${SOURCE:-git+https://github.com/jaxzoo/jaxzoo}

execute() {
  if [[ -n "$dry_run" ]]; then
    printf '%q ' "$@"
    echo
  else
    "$@"
  fi
}

# Software for a kind of accelerator: v2-alpha-tpuv6e for v6e, and so on.
software() {
  case "$1" in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) echo tpu-ubuntu2204-base ;;
  esac
}

on_all() {
  execute gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" \
    --worker=all --command="$1"
}

create() {
  local kind=$1
  shift
  execute gcloud compute tpus queued-resources create "$name" "${where[@]}" \
    --node-id="$name" --accelerator-type="$kind" \
    --runtime-version="${VERSION:-$(software "$kind")}" "$@"
}

state() {
  gcloud compute tpus queued-resources describe "$name" "${where[@]}" \
    --format='value(state.state)' 2> /dev/null || echo NONE
}

# Returns when the slice is there; 1 where it will not come any more.
wait_active() {
  [[ -n "$dry_run" ]] && return 0
  while true; do
    case "$(state)" in
      ACTIVE) return 0 ;;
      FAILED | SUSPENDED | NONE) return 1 ;;
      *) sleep 30 ;;
    esac
  done
}

delete() {
  execute gcloud compute tpus queued-resources delete "$name" "${where[@]}" \
    --force --quiet
}

# Quoted once more: the command goes through a shell on each worker. tmux keeps
# the run when the connection ends; its exit code waits in a file.
run() {
  local arguments
  arguments=$(printf '%q ' "$@")
  on_all "python3 -m venv ~/jaxzoo-env && ~/jaxzoo-env/bin/pip install -q \
$(printf '%q' "jaxzoo[tpu,gcs] @ $source")"
  on_all "rm -f ~/jaxzoo.code; tmux new-session -d -s jaxzoo \
\"~/jaxzoo-env/bin/python -m jaxzoo.main $arguments > ~/jaxzoo.log 2>&1; \
echo \\\$? > ~/jaxzoo.code\""
}

# 0: ended well; 1: preempted or lost; else the run's own code.
follow() {
  [[ -n "$dry_run" ]] && return 0
  while [[ "$(state)" == ACTIVE ]]; do
    local code
    code=$(gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=0 \
      --command='cat ~/jaxzoo.code 2> /dev/null' 2> /dev/null || true)
    [[ -n "$code" ]] && return "$code"
    sleep 60
  done
  return 1
}

case "$action" in
  create)
    [[ $# -ge 1 ]] || { echo "create NAME KIND, for example v5litepod-16" >&2; exit 2; }
    echo "to delete it: $0 delete $name" >&2
    create "$@"
    ;;
  run)
    [[ "${1:-}" == -- ]] && shift
    run "$@"
    ;;
  logs)
    execute gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" --worker=0 \
      --command='tail -n 100 -F ~/jaxzoo.log'
    ;;
  resume)
    kind=$1
    shift
    [[ "${1:-}" == -- ]] && shift
    while true; do
      create "$kind" --spot
      if wait_active; then
        run "$@"
        if follow; then
          break
        else
          code=$?
          # 2 and 3 are mistakes and divergence: the same would come again.
          if [[ $code -eq 2 || $code -eq 3 ]]; then
            echo "the run ended with $code; see: $0 logs $name" >&2
            exit "$code"
          fi
        fi
      fi
      [[ -n "$dry_run" ]] && break
      delete
    done
    ;;
  delete) delete ;;
  *)
    echo "no action '$action'; there are create, run, logs, resume, delete" >&2
    exit 2
    ;;
esac
