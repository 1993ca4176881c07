#!/usr/bin/env bash
# All tests, from nothing: makes its own virtual environment.   bash launch/test.sh [pytest arguments]
#   HPCTRACK_TRACKML_DIR     a folder of TrackML files: tests on real events run (else they are skipped and say so)
#   HPCTRACK_TEST_PROCESSES  how many processes run test files side by side [3]; 0: none, as a debugger needs
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/env.sh sim,reference,mpi,deepspeed,optim,parquet,onnx,dev
# an mpirun that fits mpi4py, whatever the machine has: a wheel of 13 MB; without it the MPI tests are skipped and say so
python -c 'import importlib.metadata as m; m.version("mpich")' 2>/dev/null || python -m pip install --quiet --disable-pip-version-check --only-binary mpich \
  -c launch/constraints.txt mpich || echo "launch: no mpich wheel for this machine: tests under mpirun will be skipped"
# ColliderML's scorer, of which its tests need the module of metrics alone, and none of its dependencies
python -c 'import importlib.metadata as m; m.version("colliderml")' 2>/dev/null || python -m pip install --quiet --disable-pip-version-check --no-deps \
  -c launch/constraints.txt colliderml || echo "launch: no colliderml: tests with its scorer will be skipped"
if [ -n "${HPCTRACK_TRACKML_DIR:-}" ]; then
  HPCTRACK_TRACKML_DIR=$(cd "$HPCTRACK_TRACKML_DIR" && pwd) && export HPCTRACK_TRACKML_DIR
else
  echo "launch: HPCTRACK_TRACKML_DIR is not set: tests on real TrackML events will be skipped"
fi
ruff check .
ruff format --check .
python -m mypy
# many tests wait for ranks or launchers, so more files than two cores can hold run side by side; those that wait longest are collected first
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1}
exec python -m pytest -rs -n "${HPCTRACK_TEST_PROCESSES:-3}" --dist loadfile --no-loadscope-reorder "$@"
