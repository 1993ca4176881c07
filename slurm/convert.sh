#!/usr/bin/env bash
# TrackML CSV to a dataset:   sbatch [sbatch options] slurm/convert.sh SOURCE OUT [options of hpctrack convert]
#   sbatch -A m1234 -C cpu --cpus-per-task 64 slurm/convert.sh csv/train data/train               # processes of one node
#   HPCTRACK_MPI=pmix sbatch -A m1234 -C cpu --nodes 8 --ntasks-per-node 64 slurm/convert.sh csv/train data/train
# HPCTRACK_MPI is srun's --mpi (srun --mpi=list) that fits the MPI of mpi4py. Shards that are finished are kept, so the job
# can be requeued, and submitted again, at any point.
#SBATCH --job-name=hpctrack-convert
#SBATCH --nodes=1
#SBATCH --time=02:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail
source "${HPCTRACK_ROOT:-$SLURM_SUBMIT_DIR}/slurm/common.sh"

layout=()
if [ -n "${HPCTRACK_MPI:-}" ]; then
  [[ $tasks_per_node != [1-9]* ]] || layout=(--ntasks-per-node "${tasks_per_node%%:*}")
  until_done run --mpi "$HPCTRACK_MPI" --ntasks "$tasks" --cpus-per-task "$cpus_per_task" "${layout[@]}" python -m hpctrack.convert "$@"
else
  cpus=$cpus_per_task
  [ "$cpus" != 1 ] || cpus=$SLURM_CPUS_ON_NODE
  until_done run --nodes 1 --ntasks 1 --cpus-per-task "$cpus" --cpu-bind none python -m hpctrack.convert "$@" --jobs "$cpus"
fi
say "done"
