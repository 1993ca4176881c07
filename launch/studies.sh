#!/usr/bin/env bash
# The studies on converted datasets: the influencer model, the greedy baseline and object condensation trained alike,
# efficiency and fakes against the number of tracks (Fig. 2 of D. Murnane, "Influencer Loss", CHEP 2023), costs against it
# (Fig. 3), and a report of all. Running it again goes on where it stopped. Costs want a machine that does nothing else.
#   bash launch/studies.sh TRAIN VALID TEST OUT [key=value …]      (overrides hold for every training)
#   STUDIES_RANKS        processes in training and inference             (default: 1, since a step is one event)
#   STUDIES_STEPS        optimizer steps of each system                  (default: as in the recipes)
#   STUDIES_TRACKS       tracks of an event in training and in the report's tables   (default: 500, as in the recipes)
#   STUDIES_POINTS       numbers of tracks that are studied, with commas (default: 10,20,50,100,200,300,400,500,all)
#   STUDIES_EVENTS       events a point, and of the report's tables      (default: 50)
#   STUDIES_COST_EVENTS  the same for costs                              (default: 5)
set -euo pipefail
[ $# -ge 4 ] || { echo "usage: launch/studies.sh TRAIN VALID TEST OUT [key=value …]" >&2; exit 2; }
cd "$(dirname "$0")/.."
train=$1 valid=$2 test=$3 out=$4
shift 4
ranks=${STUDIES_RANKS:-1}
tracks=${STUDIES_TRACKS:-500}
events=${STUDIES_EVENTS:-50}
points=${STUDIES_POINTS:-10,20,50,100,200,300,400,500,all}
systems=(influencer greedy condensation)
begin=$SECONDS

say() { printf '\n== %s  (%d s)\n' "$*" $((SECONDS - begin)); }
ranks() { torchrun --standalone --nproc-per-node "$ranks" -m "$@"; }

for system in "${systems[@]}"; do
  say "$system: train on $ranks ranks"
  recipe=${system/%influencer/influencer-500}
  ranks hpctrack.train "configs/$recipe.yaml" "run=$out/$system" "data.train=$train" "data.valid=$valid" \
    "data.selection.tracks=$tracks" ${STUDIES_STEPS:+"train.steps=$STUDIES_STEPS"} "$@"
done

say "efficiency and fakes against tracks: $points"
checkpoints=()
for system in "${systems[@]}"; do checkpoints+=("$system=$out/$system"); done
python -m tests.campaigns.tracks --checkpoints "${checkpoints[@]}" --data "$test" --points "$points" \
  --events "$events" --out "$out/tracks"

say "costs against tracks: $points"
python -m tests.campaigns.costs --data "$test" --points "$points" --events "${STUDIES_COST_EVENTS:-5}" --out "$out/costs"

say "tables of $tracks tracks an event"
hpctrack convert "$test" "$out/test-$tracks" --pt-min-gev 1 --tracks "$tracks" --remove-noise --seed 7 --limit "$events"
for system in "${systems[@]}"; do
  ranks hpctrack.infer --checkpoint "$out/$system" --data "$out/test-$tracks" --out "$out/candidates-$system"
  hpctrack evaluate "$out/candidates-$system" --data "$out/test-$tracks" --out "$out/$system.json" --pt-min-gev 1
done
hpctrack report --title "Studies: the influencer model beside greedy and object condensation" --run "$out/influencer" \
  --results "$out/influencer.json" --reference "$out/greedy.json" "$out/condensation.json" \
  --candidates "$out/candidates-influencer" --data "$out/test-$tracks" \
  --study "$out/tracks" --study "$out/costs" --out "$out/report.html"
say "done: open $out/report.html"
