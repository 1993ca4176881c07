#!/usr/bin/env bash
# The pipeline on converted datasets, stage by stage: metric learning -> filter -> graph network -> tracks, each trained,
# run on all events and evaluated alone, then the chain as a whole. Running it again goes on where it stopped.
#   bash launch/pipeline.sh TRAIN VALID TEST OUT [key=value …]      (overrides hold for every training)
#   PIPELINE_RANKS       processes in training and inference      (default: 2)
#   PIPELINE_PT_MIN_GEV  transverse momentum of the targets       (default: 1.0)
#   PIPELINE_RADIUS, PIPELINE_CUT   of the embedding's graph, and on the filter's scores; default: as in the recipes
set -euo pipefail
[ $# -ge 4 ] || { echo "usage: launch/pipeline.sh TRAIN VALID TEST OUT [key=value …]" >&2; exit 2; }
cd "$(dirname "$0")/.."
train=$1 valid=$2 test=$3 out=$4
shift 4
ranks=${PIPELINE_RANKS:-2}
pt=${PIPELINE_PT_MIN_GEV:-1.0}
begin=$SECONDS

say() { printf '\n== %s  (%d s)\n' "$*" $((SECONDS - begin)); }
ranks() { torchrun --standalone --nproc-per-node "$ranks" -m "$@"; }

train_stage() { # stage, overrides
  local stage=$1
  shift
  say "$stage: train on $ranks ranks"
  ranks hpctrack.train "configs/pipeline/$stage.yaml" "run=$out/$stage" "data.train=$train" "data.valid=$valid" \
    "data.selection.pt_min_gev=$pt" "$@"
}

write_edges() { # stage, overrides of inference
  local stage=$1 data
  shift
  for data in "$train" "$valid" "$test"; do
    say "$stage: edges of $data"
    ranks hpctrack.infer --checkpoint "$out/$stage" --data "$data" --out "$data/edges/$stage" "$@"
  done
  hpctrack evaluate "$test/edges/$stage" --data "$test" --out "$out/$stage.json" --pt-min-gev "$pt"
}

train_stage embedding "$@"
write_edges embedding ${PIPELINE_RADIUS:+"builder.radius=$PIPELINE_RADIUS"}
train_stage filter "$@"
write_edges filter ${PIPELINE_CUT:+"builder.cut=$PIPELINE_CUT"}
train_stage gnn "$@"

say "gnn: tracks of $test"
ranks hpctrack.infer --checkpoint "$out/gnn" --data "$test" --out "$out/candidates"
hpctrack evaluate "$out/candidates" --data "$test" --out "$out/results.json" --pt-min-gev "$pt"
ranks hpctrack.infer --checkpoint "$out/gnn" --data "$test" --out "$out/scores" builder.name=edges builder.cut=0.0
hpctrack evaluate "$out/scores" --data "$test" --out "$out/gnn.json" --pt-min-gev "$pt"
say "done: $out/results.json"
