#!/usr/bin/env bash
# Write track candidates, by one job or by the tasks of a job array:
#   sbatch -A m1234 -C gpu --gpus-per-node 4 --array 0-15 slurm/infer.sh --checkpoint RUN --data DATASET --out FOLDER
# Each task takes a share of the events, by cost, and commits event by event; the one that ends last joins them. Tasks can run
# at any time and in any order. A task that is preempted requeues itself; one that failed can be submitted again
# (the same line with --array 7, or without --array: the rest in one go).
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
if [ "${SLURM_ARRAY_TASK_COUNT:-1}" -gt 1 ]; then
  share=(--part "$(((SLURM_ARRAY_TASK_ID - SLURM_ARRAY_TASK_MIN) / SLURM_ARRAY_TASK_STEP))/$SLURM_ARRAY_TASK_COUNT")
fi
until_done launch "$SLURM_NNODES" hpctrack.infer "${share[@]}" "$@"
say "done"
