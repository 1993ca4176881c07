#!/usr/bin/env bash
# What hpctrack does on one GPU, on a bare machine with PyTorch and no network:   bash launch/gpu_check.sh OUT [MINUTES]
# Runs tests/gpu and `hpctrack bench gpu` in order of worth, writes JSON after each, stops in time (14 minutes), and ends
# with the page OUT/gpu.md and, of a GPU, OUT/gpu.json: both belong into docs/benchmarks.
# Called again with the same OUT, on the same kind of GPU, it goes on with what is not done yet.
#   bash launch/gpu_check.sh --wheels FOLDER [PYTHON [NAME...]]   beforehand, with a network: fetch what such a machine
#                           lacks for its version of Python [3.12]: these packages and what they need [all]
#   PYTHON                  the Python that has torch [python3]
#   HPCTRACK_GPU_WHEELS     folder of these wheels [wheels]
#   HPCTRACK_GPU_REHEARSAL  1: run all of it on the CPU, small
#   HPCTRACK_GPU_DATA       folder of the datasets train-gev, valid-gev and test-500 (docs/physics/influencer.md): at the
#                           end train influencer-500 on them from new weights, for HPCTRACK_GPU_STEPS steps [20000]
set -euo pipefail
usage() { sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "$0"; }
case ${1:-} in
--help | -h) usage && exit 0 ;;
'') usage >&2 && exit 2 ;;
esac
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
packages=(torch_geometric h5py numpy scipy sklearn pandas pydantic yaml xxhash tensorboard matplotlib pytest hypothesis)
names=(torch-geometric h5py numpy scipy scikit-learn pandas pydantic pyyaml xxhash tensorboard matplotlib pytest hypothesis)

if [ "$1" = --wheels ]; then
  folder=${2:?folder} version=${3:-3.12}
  shift $(($# < 3 ? $# : 3))
  platforms=()
  for one in 2_28 2_27 2_24 2_17 2_12 2_5; do platforms+=(--platform "manylinux_${one}_x86_64"); done
  exec "$python" -m pip download --only-binary=:all: --python-version "$version" "${platforms[@]}" \
    --platform manylinux2014_x86_64 -d "$folder" "${@:-${names[@]}}"
fi
out=$(mkdir -p "$1" && cd "$1" && pwd)
deadline=$(($(date +%s) + 60 * ${2:-14}))
wheels=${HPCTRACK_GPU_WHEELS:-wheels}
site=$(mktemp -d)
trap 'rm -rf "$site"' EXIT
export PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
rehearsal=
if [ "${HPCTRACK_GPU_REHEARSAL:-}" = 1 ]; then rehearsal=1 && export CUDA_VISIBLE_DEVICES=; fi

"$python" -c 'import torch' 2>/dev/null || { echo "gpu_check: $python has no torch; set PYTHON to one that has"; exit 2; }
look() { # what is missing
  missing=()
  for i in "${!packages[@]}"; do
    "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('${packages[$i]}') is None)" || missing+=("${names[$i]}")
  done
}
look
if [ ${#missing[@]} -gt 0 ]; then
  echo "gpu_check: ${missing[*]} missing, taken from $wheels"
  # only what the machine lacks, and nothing that it has: its packages were built to fit each other
  mapfile -t lacked < <("$python" - "$wheels" <<'PY'
import importlib.metadata as m, pathlib, sys
for wheel in sorted(pathlib.Path(sys.argv[1]).glob("*.whl")):
    try:
        m.version(wheel.name.split("-")[0])
    except m.PackageNotFoundError:
        print(wheel)
PY
  )
  [ ${#lacked[@]} -eq 0 ] || "$python" -m pip install --quiet --no-index --no-deps --no-compile --target "$site" "${lacked[@]}" || true
  look
  if [ ${#missing[@]} -gt 0 ]; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "gpu_check: still missing: where there is a network, run   bash launch/gpu_check.sh --wheels wheels $version ${missing[*]}   and bring the folder along"
    exit 2
  fi
fi
"$python" - "$out/device" <<'PY' || exit 2
import os, pathlib, sys, torch
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
rehearsal = os.environ.get("HPCTRACK_GPU_REHEARSAL") == "1"
here = f"torch {torch.__version__}, {gpu or 'no GPU'}{', a rehearsal on the CPU' if rehearsal else ''}"
print(f"gpu_check: {here}")
if gpu is None and not rehearsal:
    raise SystemExit("gpu_check: torch sees no GPU; HPCTRACK_GPU_REHEARSAL=1 rehearses on the CPU")
device = pathlib.Path(sys.argv[1])
if device.exists() and device.read_text() != here:
    raise SystemExit(f"gpu_check: {device.parent} is of {device.read_text()}: give another folder")
device.write_text(here)
PY

# work NAME LIMIT_S DONE COMMAND...: run it for at most so long and no longer than there is time; note how it ended.
# Not what has ended before, with an exit code that DONE matches. SIGINT is what pytest ends on with its results.
work() {
  local name=$1 limit=$2 ended=$3 begin left rc=0
  shift 3
  if grep -qsE "\"name\": \"$name\", \"rc\": $ended," "$out/status.jsonl"; then
    echo "gpu_check: $name: done before"
    return
  fi
  begin=$(date +%s)
  left=$((deadline - begin - 55)) # for what does not end at once, and for the page
  # a rehearsal takes what it takes; and what had too little time before gets all there is
  if [ -n "$rehearsal" ] || grep -qs "\"name\": \"$name\", \"rc\": 1[23][47]," "$out/status.jsonl"; then limit=$left; fi
  if [ "$left" -lt 10 ]; then
    rc=125
  else
    timeout --signal INT --kill-after 25 "$((left < limit ? left : limit))" env --default-signal=INT "$@" >"$out/$name.log" 2>&1 || rc=$?
  fi
  echo "{\"name\": \"$name\", \"rc\": $rc, \"seconds\": $(($(date +%s) - begin))}" >>"$out/status.jsonl"
  echo "gpu_check: $name: exit code $rc, $(($(date +%s) - begin)) s"
}
bench() { work "bench-$1" "$2" 0 "$python" -m hpctrack.bench gpu --parts "$1" ${rehearsal:+--quick} --json "$out/bench-$1.json"; }
tests() { work "tests-$1" "$2" "[01]" "$python" -m pytest -q -p no:cacheprovider -rs --junitxml "$out/tests-$1.xml" "tests/gpu/test_gpu_$1.py"; }

bench influencer-500 90
tests searches 120
tests training 150
tests models 240
for part in paper interaction influencer-full pixel slope chain compiled compiled-influencer; do bench "$part" 120; done
if [ -n "${HPCTRACK_GPU_DATA:-}" ]; then # in one call or several: a run goes on from its newest checkpoint
  data=$(cd "$HPCTRACK_GPU_DATA" && pwd) run=$out/influencer-500 steps=${HPCTRACK_GPU_STEPS:-20000}
  work "training-$steps" 36000 0 "$python" -m hpctrack.train influencer-500 "run=$run" "data.train=$data/train-gev" \
    "data.valid=$data/valid-gev" "train.steps=$steps"
  if grep -qs "\"name\": \"training-$steps\", \"rc\": 0," "$out/status.jsonl"; then
    work "inference-$steps" 36000 0 "$python" -m hpctrack.infer --checkpoint "$run" --data "$data/test-500" --out "$out/candidates-$steps"
    work "evaluation-$steps" 36000 0 "$python" -m hpctrack.evaluate "$out/candidates-$steps" --data "$data/test-500" --pt-min-gev 1 --out "$out/influencer-500.json"
  fi
fi
"$python" -m hpctrack.benchmarks.gpu_page "$out" --markdown "$out/gpu.md" --json "$out/gpu.json"
echo "gpu_check: $out/gpu.md"
