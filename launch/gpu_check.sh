#!/usr/bin/env bash
# What hpctrack does on one GPU, on a bare machine with PyTorch and no network:   bash launch/gpu_check.sh OUT [MINUTES]
# Runs tests/gpu and `hpctrack bench gpu` in order of worth, writes JSON after each, stops in time (14 minutes), and ends
# with the page OUT/gpu.md and, of a GPU, OUT/gpu.json: both belong into docs/benchmarks.
#   bash launch/gpu_check.sh --wheels FOLDER [PYTHON]   beforehand, with a network: fetch what such a machine may lack
#   HPCTRACK_GPU_WHEELS     folder of these wheels [wheels]
#   HPCTRACK_GPU_REHEARSAL  1: run all of it on the CPU, small
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python3}
packages=(torch_geometric h5py numpy scipy sklearn pandas pydantic yaml xxhash tensorboard matplotlib pytest hypothesis)
names=(torch-geometric h5py numpy scipy scikit-learn pandas pydantic pyyaml xxhash tensorboard matplotlib pytest hypothesis)

if [ "${1:-}" = --wheels ]; then
  exec "$python" -m pip download --only-binary=:all: --python-version "${3:-3.12}" --platform manylinux_2_28_x86_64 \
    --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 -d "${2:?folder}" "${names[@]}"
fi
[ $# -ge 1 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2; }
out=$(mkdir -p "$1" && cd "$1" && pwd)
deadline=$(($(date +%s) + 60 * ${2:-14}))
wheels=${HPCTRACK_GPU_WHEELS:-wheels}
export PYTHONPATH="$out/site:$PWD${PYTHONPATH:+:$PYTHONPATH}" OMP_NUM_THREADS=${OMP_NUM_THREADS:-4}
: >"$out/status.jsonl"
rm -f "$out"/bench-*.json "$out"/tests.xml "$out"/gpu.md "$out"/gpu.json # of an earlier run
[ -z "${HPCTRACK_GPU_REHEARSAL:-}" ] || export CUDA_VISIBLE_DEVICES=

"$python" -c 'import torch' 2>/dev/null || { echo "gpu_check: $python has no torch; set PYTHON to one that has"; exit 2; }
missing=()
for i in "${!packages[@]}"; do
  "$python" -c "import importlib.util as u, sys; sys.exit(u.find_spec('${packages[$i]}') is None)" || missing+=("${names[$i]}")
done
if [ ${#missing[@]} -gt 0 ]; then
  missing=("${names[@]}") # all or none: one wheel alone could bring a numpy for which the machine's others are not built
  echo "gpu_check: ${missing[*]} missing, taken from $wheels"
  if ! "$python" -m pip install --quiet --no-index --find-links "$wheels" --target "$out/site" "${missing[@]}"; then
    version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])')
    echo "gpu_check: where there is a network, run   bash launch/gpu_check.sh --wheels wheels $version   and bring the folder along"
    exit 2
  fi
fi
"$python" - <<'PY'
import os, torch
gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
rehearsal = os.environ.get("HPCTRACK_GPU_REHEARSAL") == "1"
print(f"gpu_check: torch {torch.__version__}, {gpu or 'no GPU'}{', a rehearsal on the CPU' if rehearsal else ''}")
if gpu is None and not rehearsal:
    raise SystemExit("gpu_check: torch sees no GPU; HPCTRACK_GPU_REHEARSAL=1 rehearses on the CPU")
PY

# work NAME LIMIT_S COMMAND...: run it for at most so long and no longer than there is time; note how it ended
work() {
  local name=$1 limit=$2 begin left rc=0
  shift 2
  begin=$(date +%s)
  left=$((deadline - begin - 40)) # for the page
  if [ "$left" -lt 10 ]; then
    rc=125
  else
    timeout --signal INT --kill-after 10 "$((left < limit ? left : limit))" "$@" >"$out/$name.log" 2>&1 || rc=$?
  fi
  echo "{\"name\": \"$name\", \"rc\": $rc, \"seconds\": $(($(date +%s) - begin))}" >>"$out/status.jsonl"
  echo "gpu_check: $name: exit code $rc, $(($(date +%s) - begin)) s"
}
bench() { work "bench-$1" "$2" "$python" -m hpctrack.bench gpu --parts "$1" ${HPCTRACK_GPU_REHEARSAL:+--quick} --json "$out/bench-$1.json"; }
tests() { work "tests" "$1" "$python" -m pytest -q -p no:cacheprovider -rs --junitxml "$out/tests.xml" tests/gpu; }

bench influencer-500 90
tests 360
for part in paper interaction influencer-full pixel slope chain; do bench "$part" 120; done
"$python" -m hpctrack.benchmarks.gpu_page "$out" --markdown "$out/gpu.md" --json "$out/gpu.json"
echo "gpu_check: $out/gpu.md"
