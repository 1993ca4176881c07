#!/usr/bin/env bash
# Strong and weak scaling over numbers of nodes, as one page with a plot:   sbatch [sbatch options] slurm/scaling.sh DATA [OUT]
#   sbatch -A m1234 -C gpu -q regular --nodes 16 --gpus-per-node 4 --time 1:00:00 slurm/scaling.sh data/train runs/scaling
# On 1, 2, 4 … nodes of the job, one after the other: runs with the same events a step (4 a rank of the largest), and
# with 4 events a rank. SCALING_STEPS and SCALING_ROUNDS say how many steps a run has (default 12) and how often it is made
# (default 2). Runs that have ended are kept, so the job can be requeued. Ends with OUT/scaling.{json,md,png}.
#SBATCH --job-name=hpctrack-scaling
#SBATCH --nodes=1
#SBATCH --time=01:00:00
#SBATCH --output=%x-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail
source "${HPCTRACK_ROOT:-$SLURM_SUBMIT_DIR}/slurm/common.sh"

[ $# -ge 1 ] || { echo "scaling.sh: error: give a dataset folder" >&2; exit $BAD_INPUT; }
data=$1 out=${2:-runs/scaling} per_rank=4
mapfile -t settings < <(python -c 'from hpctrack.benchmarks import scaling; print(scaling.CONFIG, *scaling.SETTINGS, sep="\n")')
counts=()
for ((nodes = 1; nodes < SLURM_NNODES; nodes *= 2)); do counts+=("$nodes"); done
counts+=("$SLURM_NNODES")

for round in $(seq 0 $((${SCALING_ROUNDS:-2} - 1))); do
  for nodes in "${counts[@]}"; do
    for batch in $(printf '%s\n' $((per_rank * ranks * nodes)) $((per_rank * ranks * SLURM_NNODES)) | sort -un); do
      run=$out/ranks-$((ranks * nodes))-batch-$batch-round-$round
      [ -e "$run/done" ] && continue
      until_done launch "$nodes" hpctrack.train "${settings[@]}" "run=$run" "data.train=$data" \
        "plan.events_per_step=$batch" "train.steps=${SCALING_STEPS:-12}"
      touch "$run/done"
    done
  done
done
hpctrack bench scaling --runs "$out" --json "$out/scaling.json" --markdown "$out/scaling.md"
say "done: $out/scaling.md"
