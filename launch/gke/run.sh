#!/usr/bin/env bash
# A run on GKE with JobSet.
#
#   IMAGE=REGISTRY/jaxzoo:tpu launch/gke/run.sh NAME \
#     --config=configs/cfam.py:ufine6926 --workdir=gs://BUCKET/runs/cfam
#
# ACCELERATOR (tpu-v5-lite-podslice), TOPOLOGY (4x4), HOSTS (4) and CHIPS (4, of a
# host) say which slice, SLICES (1) how many; RESTARTS (100) after preemptions.
# --dry-run as the first argument prints the manifest. The image is made from
# launch/Dockerfile; xpk takes the same image:
#   xpk workload create --workload=NAME --docker-image=IMAGE \
#     --tpu-type=v5litepod-16 --command='python -m jaxzoo.main ...'
set -euo pipefail

dry_run=
if [[ "${1:-}" == --dry-run ]]; then
  dry_run=yes
  shift
fi
if [[ $# -lt 2 ]]; then
  sed -n '2,14p' "$0" >&2
  exit 2
fi
: "${IMAGE:?set IMAGE to the one made from launch/Dockerfile}"
export NAME=$1 IMAGE
shift
if [[ ! "$NAME" =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]]; then
  echo "NAME=$NAME: lower-case letters, digits and dashes, at most 40" >&2
  exit 2
fi
export ACCELERATOR=${ACCELERATOR:-tpu-v5-lite-podslice} TOPOLOGY=${TOPOLOGY:-4x4}
export HOSTS=${HOSTS:-4} CHIPS=${CHIPS:-4} SLICES=${SLICES:-1}
export RESTARTS=${RESTARTS:-100}
# A JSON list is a YAML list, whatever the arguments contain.
ARGUMENTS=$(python3 -c 'import json, sys; print(json.dumps(sys.argv[1:]))' "$@")
export ARGUMENTS
manifest=$(python3 -c '
import os, string, sys
print(string.Template(sys.stdin.read()).substitute(os.environ))
' < "$(dirname "$0")/jobset.yaml")
if [[ -n "$dry_run" ]]; then
  echo "$manifest"
else
  kubectl apply -f - <<< "$manifest"
  echo "logs:   kubectl logs -f -l jobset.sigs.k8s.io/jobset-name=$NAME"
  echo "delete: kubectl delete jobset $NAME"
fi
