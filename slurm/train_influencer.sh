#!/usr/bin/env bash
# Train on a Slurm cluster:   sbatch [sbatch options] slurm/train_influencer.sh [CONFIG] [key.sub=value …]
# Site settings come from sbatch options or the environment, nothing of them is in here, e.g. on Perlmutter:
#   sbatch -A m1234 -C gpu -q regular --nodes 2 --gpus-per-node 4 slurm/train_influencer.sh
# One launcher per node; it starts a rank per GPU, or $HPCTRACK_RANKS_PER_NODE ranks on CPUs.
#SBATCH --job-name=hpctrack-train
#SBATCH --nodes=1
#SBATCH --ntasks-per-node=1
#SBATCH --time=04:00:00
#SBATCH --output=%x-%j.log
set -euo pipefail
cd "${SLURM_SUBMIT_DIR:-$(dirname "$0")/..}"
source "${HPCTRACK_ENV:-.venv/bin/activate}"

config=configs/influencer.yaml
if [ $# -gt 0 ] && [ -f "$1" ]; then config=$1; shift; fi
ranks=${HPCTRACK_RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
head_node=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HDF5_USE_FILE_LOCKING=${HDF5_USE_FILE_LOCKING:-FALSE}

srun torchrun --nnodes "$SLURM_NNODES" --nproc-per-node "$ranks" \
  --rdzv-id "$SLURM_JOB_ID" --rdzv-backend c10d --rdzv-endpoint "$head_node:${HPCTRACK_PORT:-29511}" \
  -m hpctrack.train "$config" "$@"
