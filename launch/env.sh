# Sourced by the launch scripts: makes (once) and activates the project's own virtual environment.
#   HPCTRACK_VENV    where it is               (default: .venv in the project)
#   HPCTRACK_PYTHON  which Python makes it     (default: the first of python3.11, python3, python3.12, python3.13, python3.10 that works)
#   PIP_* variables  reach pip as usual, e.g. PIP_EXTRA_INDEX_URL for a CPU or CUDA build of torch
# Usage: source launch/env.sh EXTRAS   (e.g. sim,dev)
HPCTRACK_ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
HPCTRACK_VENV=${HPCTRACK_VENV:-$HPCTRACK_ROOT/.venv}

hpctrack_python() { # the first Python >= 3.10 that can make virtual environments; 3.11 is the tested one
  local candidate
  for candidate in ${HPCTRACK_PYTHON:-python3.11 python3 python3.12 python3.13 python3.10}; do
    if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 10))' >/dev/null 2>&1; then
      echo "$candidate"
      return
    fi
  done
  echo "launch: error: no Python >= 3.10 with the venv module found (Debian: apt-get install python3-venv)" >&2
  return 2
}

hpctrack_install() { # $1: extras
  local stamp wanted python
  wanted=$(cat "$HPCTRACK_ROOT/setup.py" "$HPCTRACK_ROOT/launch/constraints.txt" - <<<"$1 $HPCTRACK_ROOT" | cksum)
  stamp=$HPCTRACK_VENV/.hpctrack-$1
  [ "$(cat "$stamp" 2>/dev/null)" = "$wanted" ] && return
  if [ ! -x "$HPCTRACK_VENV/bin/python" ]; then
    python=$(hpctrack_python) || return
    echo "launch: making a virtual environment in $HPCTRACK_VENV"
    "$python" -m venv "$HPCTRACK_VENV" || return
  fi
  echo "launch: installing hpctrack[$1] and what it needs (a few minutes the first time)"
  local pip=("$HPCTRACK_VENV/bin/python" -m pip install --quiet --disable-pip-version-check)
  "${pip[@]}" -c "$HPCTRACK_ROOT/launch/constraints.txt" torch setuptools wheel || return
  # extras with compiled parts come as wheels or not at all: their source builds take half an hour
  "${pip[@]}" -c "$HPCTRACK_ROOT/launch/constraints.txt" --only-binary pyacts,pythia8mc --no-build-isolation \
    -e "$HPCTRACK_ROOT[$1]" || return
  echo "$wanted" >"$stamp"
}

hpctrack_install "${1:-dev}" || return 2
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} PATH="$HPCTRACK_VENV/bin:$PATH"
