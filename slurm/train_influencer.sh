#!/usr/bin/env bash
# Train on a Slurm cluster:   sbatch [sbatch options] slurm/train_influencer.sh [CONFIG] [key.sub=value …]
#   sbatch -A m1234 -C gpu -q regular --nodes 2 --gpus-per-node 4 slurm/train_influencer.sh
# One launcher a node starts a rank a GPU. Preempted, or two minutes before its walltime, the job saves, requeues itself and
# goes on; submitted again after its end or a fault, it goes on from the newest checkpoint. More: slurm/common.sh.
#SBATCH --job-name=hpctrack-train
#SBATCH --nodes=1
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail
source "${HPCTRACK_ROOT:-$SLURM_SUBMIT_DIR}/slurm/common.sh"

config=configs/influencer.yaml
if [ $# -gt 0 ] && [[ $1 != *=* ]]; then config=$1; shift; fi # a file, or the name of a recipe
until_done launch "$SLURM_NNODES" hpctrack.train "$config" "$@"
say "done"
