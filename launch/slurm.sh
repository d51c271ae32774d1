#!/usr/bin/env bash
# A SLURM job on GPUs, one process a node; it is queued again after preemption.
#
#   sbatch --nodes=4 --gpus-per-node=8 launch/slurm.sh \
#     --config=configs/cfam.py:ufine6926 --workdir=/shared/runs/cfam
#
# The processes find each other by SLURM's variables. 120 seconds before the end
# every process gets SIGTERM, agrees with the others on a step, and saves.
# DRY_RUN=yes prints the command instead of running it.
#SBATCH --job-name=jaxzoo
#SBATCH --ntasks-per-node=1
#SBATCH --cpus-per-task=32
#SBATCH --signal=TERM@120
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=jaxzoo-%j.log
set -euo pipefail

if [[ $# -eq 0 ]]; then
  sed -n '2,9p' "$0" >&2
  exit 2
fi
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}
export NCCL_NVLS_ENABLE=${NCCL_NVLS_ENABLE:-1}

command=(srun --kill-on-bad-exit=1 "${PYTHON:-python}" -m jaxzoo.main "$@")
if [[ -n "${DRY_RUN:-}" ]]; then
  printf '%q ' "${command[@]}"
  echo
  exit
fi
status=0
"${command[@]}" || status=$?
# A run that was stopped ends with 0 and is not finished: result.json tells.
workdir=
for argument in "$@"; do
  [[ "$argument" == --workdir=* ]] && workdir=${argument#--workdir=}
done
if [[ $status -eq 0 && -n "$workdir" && ! -e "$workdir/result.json" ]]; then
  scontrol requeue "${SLURM_JOB_ID:?}"
fi
exit "$status"
