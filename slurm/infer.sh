#!/usr/bin/env bash
# Write track candidates, by one job or by the tasks of a job array:
#   sbatch -A m1234 -C gpu --gpus-per-node 4 --array 0-15 slurm/infer.sh --checkpoint RUN --data DATASET --out FOLDER
# Each task takes a share of the events, by cost, and commits event by event; the one that ends last joins them. Tasks can run
# at any time and in any order. A task that is preempted requeues itself. Some that failed are submitted again with
# HPCTRACK_PARTS, which says of how many they are; when no task is under way, the same line without --array does all that is left:
#   HPCTRACK_PARTS=16 sbatch -A m1234 -C gpu --gpus-per-node 4 --array 3,7 slurm/infer.sh --checkpoint RUN --data DATASET --out FOLDER
#SBATCH --job-name=hpctrack-infer
#SBATCH --nodes=1
#SBATCH --time=01:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail
source "${HPCTRACK_ROOT:-$SLURM_SUBMIT_DIR}/slurm/common.sh"

share=()
if [ -n "${SLURM_ARRAY_TASK_ID:-}" ]; then
  index=$SLURM_ARRAY_TASK_ID parts=${HPCTRACK_PARTS:-}
  if [ -z "$parts" ]; then # the array is all parts, whatever its first number
    index=$(((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN) / SLURM_ARRAY_TASK_STEP)) parts=$SLURM_ARRAY_TASK_COUNT
    if [ $(((SLURM_ARRAY_TASK_MAX - SLURM_ARRAY_TASK_MIN) / SLURM_ARRAY_TASK_STEP + 1)) != "$parts" ]; then
      echo "infer.sh: error: --array has gaps: submit with HPCTRACK_PARTS=N, the number of all parts (--array is then of 0 to N - 1)" >&2
      exit $BAD_INPUT
    fi
  fi
  share=(--part "$index/$parts")
fi
until_done launch "$SLURM_NNODES" hpctrack.infer "${share[@]}" "$@"
say "done"
