#!/usr/bin/env bash
# The pipeline on converted datasets, stage by stage: metric learning -> filter -> graph network -> tracks, each trained,
# run on all events and evaluated alone, then the chain as a whole, in one call that stores nothing between the stages.
# Running it again goes on where it stopped.
#   bash launch/pipeline.sh TRAIN VALID TEST OUT [key=value …]      (overrides hold for every training)
#   PIPELINE_RANKS       processes in training and inference      (default: 2)
#   PIPELINE_PT_MIN_GEV  transverse momentum of the targets       (default: 1.0)
#   PIPELINE_RADIUS, PIPELINE_CUT   of the embedding's graph, and on the filter's scores; default: as in the recipes
#   PIPELINE_METHODS     e.g. "ckf dbscan": on the test events, too, by as many processes, for the report
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
evaluate() { hpctrack evaluate "$1" --data "$test" --out "$2" --pt-min-gev "$pt"; }

train_stage() { # stage, overrides
  local stage=$1
  shift
  say "$stage: train on $ranks ranks"
  ranks hpctrack.train "configs/pipeline/$stage.yaml" "run=$out/$stage" "data.train=$train" "data.valid=$valid" \
    "data.selection.pt_min_gev=$pt" "$@"
}

write_edges() { # stage
  local stage=$1 data
  for data in "$train" "$valid" "$test"; do
    say "$stage: edges of $data"
    ranks hpctrack.infer --checkpoint "$out/$stage" --data "$data" --out "$data/edges/$stage"
  done
  evaluate "$test/edges/$stage" "$out/$stage.json"
}

references=()
for method in ${PIPELINE_METHODS:-}; do
  say "$method: tracks of $test"
  ranks hpctrack.infer --method "$method" --data "$test" --out "$out/$method-candidates"
  evaluate "$out/$method-candidates" "$out/$method.json"
  references+=("$out/$method.json")
done

train_stage embedding "$@" ${PIPELINE_RADIUS:+"builder.radius=$PIPELINE_RADIUS"}
write_edges embedding
train_stage filter "$@" ${PIPELINE_CUT:+"builder.cut=$PIPELINE_CUT"}
write_edges filter
train_stage gnn "$@"
say "gnn: scores of $test"
ranks hpctrack.infer --checkpoint "$out/gnn" --data "$test" --out "$out/scores" 'builder={name: edges, cut: 0}'
evaluate "$out/scores" "$out/gnn.json"

say "the chain: tracks of $test"
ranks hpctrack.infer --checkpoint "$out/embedding" --checkpoint "$out/filter" --checkpoint "$out/gnn" --data "$test" \
  --out "$out/candidates"
evaluate "$out/candidates" "$out/results.json"
hpctrack report --results "$out/results.json" --run "$out/gnn" --candidates "$out/candidates" --data "$test" \
  ${references[@]+--reference "${references[@]}"} --out "$out/report.html"
say "done: $out/results.json, $out/report.html"
