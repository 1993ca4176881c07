#!/usr/bin/env bash
# All tests, from nothing: makes its own virtual environment.   bash launch/test.sh [pytest arguments]
#   HPCTRACK_TRACKML_DIR  a folder of TrackML files: tests on real events run (else they are skipped and say so)
set -euo pipefail
cd "$(dirname "$0")/.."
source launch/env.sh sim,dev
if [ -n "${HPCTRACK_TRACKML_DIR:-}" ]; then
  HPCTRACK_TRACKML_DIR=$(cd "$HPCTRACK_TRACKML_DIR" && pwd) && export HPCTRACK_TRACKML_DIR
else
  echo "launch: HPCTRACK_TRACKML_DIR is not set: tests on real TrackML events will be skipped"
fi
ruff check .
ruff format --check .
exec python -m pytest -rs "$@"
