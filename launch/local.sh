#!/usr/bin/env bash
# A verb on several ranks of this machine:   bash launch/local.sh RANKS VERB [arguments]
#   bash launch/local.sh 2 train configs/influencer.yaml
set -euo pipefail
[ $# -ge 2 ] || { echo "usage: launch/local.sh RANKS VERB [arguments]" >&2; exit 2; }
ranks=$1 verb=$2
shift 2
source "$(dirname "$0")/env.sh" sim,dev
export PET_SIGNALS_TO_HANDLE=${PET_SIGNALS_TO_HANDLE:-SIGTERM,SIGINT,SIGHUP,SIGQUIT} # a plain kill ends it, too
exec python "$(dirname "$0")/node.py" --standalone --nproc-per-node "$ranks" -m "hpctrack.$verb" "$@"
