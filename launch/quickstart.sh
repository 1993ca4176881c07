#!/usr/bin/env bash
# The whole path on this machine, from nothing: simulate -> convert -> train -> infer -> evaluate -> report.
# Sizes (the defaults take 7 minutes on two idle cores, after an installation of 2 to 5 minutes); running it again continues where it stopped:
#   QUICKSTART_DIR      where data, run and report go           (default: runs/quickstart)
#   QUICKSTART_RANKS    processes in training and inference     (default: 2)
#   QUICKSTART_EVENTS   full events simulated for training      (default: 24; half as many again for validation and test)
#   QUICKSTART_MU       pile-up collisions per event            (default: 200)
#   QUICKSTART_STEPS    optimizer steps                         (default: 700)
#   QUICKSTART_TRACKS   tracks per event                        (default: 50)
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/env.sh sim,dev

out=${QUICKSTART_DIR:-runs/quickstart}
ranks=${QUICKSTART_RANKS:-2}
events=${QUICKSTART_EVENTS:-24}
mu=${QUICKSTART_MU:-200}
steps=${QUICKSTART_STEPS:-700}
tracks=${QUICKSTART_TRACKS:-50}
held_out=$(((events + 3) / 4))
begin=$SECONDS

say() { printf '\n== %s  (%d s)\n' "$*" $((SECONDS - begin)); }
ranks() { torchrun --standalone --nproc-per-node "$ranks" -m "$@"; }

say "simulate: pythia8 + ACTS on the TrackML detector, mu = $mu"
simulate() { hpctrack simulate "$out/csv-$1" --source acts --events "$2" --first-event "$3" --seed "$4" --mu "$mu" --jobs "$ranks"; }
simulate train "$events" 0 1
simulate valid "$held_out" 100000 2
simulate test "$held_out" 200000 3

say "convert: TrackML CSV to sharded HDF5; validation and test events of $tracks tracks with pT > 1 GeV"
for part in train valid test; do
  hpctrack convert "$out/csv-$part" "$out/data/$part" --jobs "$ranks"
done
for part in valid test; do
  hpctrack convert "$out/data/$part" "$out/data/$part-$tracks" \
    --pt-min-gev 1 --tracks "$tracks" --draws 20 --remove-noise --seed 7
done

say "train: influencer model on $ranks ranks, $steps steps"
ranks hpctrack.train configs/influencer.yaml "run=$out/run" "data.train=$out/data/train" \
  "data.valid=$out/data/valid-$tracks" "data.selection.tracks=$tracks" "train.steps=$steps"

say "infer: candidates of the test events on $ranks ranks"
ranks hpctrack.infer --checkpoint "$out/run" --data "$out/data/test-$tracks" --out "$out/candidates" \
  --submission "$out/submission.csv"

say "infer: the same events with the shipped model, for comparison"
ranks hpctrack.infer --checkpoint influencer-500 --data "$out/data/test-$tracks" --out "$out/candidates-shipped"

say "evaluate and report"
for found in candidates-shipped:influencer-500 candidates:results; do
  hpctrack evaluate "$out/${found%:*}" --data "$out/data/test-$tracks" --out "$out/${found#*:}.json" --pt-min-gev 1
done
hpctrack report --run "$out/run" --results "$out/results.json" --candidates "$out/candidates" \
  --data "$out/data/test-$tracks" --reference "$out/influencer-500.json" --out "$out/report.html"

say "done: open $out/report.html"
