#!/usr/bin/env bash
# Train the stages of a pipeline one after the other:   sbatch [options] slurm/train_pipeline.sh CONFIG… [key.sub=value …]
#   sbatch -A m1234 -C gpu --nodes 2 --gpus-per-node 4 slurm/train_pipeline.sh configs/pipeline/*.yaml data.workers=2
# Settings hold for all stages. A stage that is finished is left as it is, so the job can be requeued at any point.
#SBATCH --job-name=hpctrack-pipeline
#SBATCH --nodes=1
#SBATCH --time=12:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail
source "${HPCTRACK_ROOT:-$SLURM_SUBMIT_DIR}/slurm/common.sh"

stages=()
while [ $# -gt 0 ] && [[ $1 != *=* ]]; do stages+=("$1"); shift; done
[ ${#stages[@]} -gt 0 ] || { echo "train_pipeline.sh: error: give the stages' recipes, in order" >&2; exit $BAD_INPUT; }
for stage in "${stages[@]}"; do
  say "stage $stage"
  until_done launch "$SLURM_NNODES" hpctrack.train "$stage" "$@"
done
say "done"
