# What the batch scripts beside it share; they source it. It knows no site: account, queue, constraint, nodes and GPUs are
# sbatch options, the rest comes from the environment:
#   HPCTRACK_ROOT            the project's folder                          (default: where sbatch was called)
#   HPCTRACK_ENV             sourced for modules and Python                (default: .venv/bin/activate)
#   HPCTRACK_RANKS_PER_NODE  ranks a node                                  (default: one a GPU; without GPUs one)
#   HPCTRACK_RESTARTS        how often a failed step is started again      (default: 3)
#   HPCTRACK_PORT            where launchers meet, on the first node       (default: another one at each start)
#   HPCTRACK_MEETING_S       how long launchers wait for each other        (default: 300)
# A job that is preempted, or told so by SIGUSR1 before its walltime, saves, goes back into the queue and goes on from there.
PREEMPTED=85 BAD_INPUT=2
cd "${HPCTRACK_ROOT:-$SLURM_SUBMIT_DIR}"
set +u # not all sites' files can bear it
source "${HPCTRACK_ENV:-.venv/bin/activate}"
set -u
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-1} HDF5_USE_FILE_LOCKING=${HDF5_USE_FILE_LOCKING:-FALSE} PYTHONUNBUFFERED=1
told= step= starts=0

# Who is this job? sbatch hands on the environment of whoever called it: perhaps of a task of another array, of a job with
# GPUs, of a rank. Variables that Slurm sets in some jobs only may be the caller's, so Slurm is asked.
for again in 1 2 3 4 5; do
  record=$(scontrol show job -d -o "$SLURM_JOB_ID" | sed -n "/^JobId=$SLURM_JOB_ID /s/ JobName=.* UserId=/ UserId=/p") && [ -n "$record" ] && break
  [ $again != 5 ] || { echo "slurm: error: scontrol does not say what job $SLURM_JOB_ID is" >&2; exit 1; }
  sleep 5
done
field() { [[ ${2:-$record} =~ " $1="([^ ]+) ]] && echo "${BASH_REMATCH[1]}"; } # of the job
restarts=$(field Restarts || echo 0) tasks=$(field NumTasks || true) cpus_per_task=$(field CPUs/Task || true)
tasks_per_node=$(field NtasksPerN:B:S:C || echo 0)
[[ $cpus_per_task = [1-9]* ]] || cpus_per_task=1 # N/A
[[ $tasks = [1-9]* ]] || tasks=$SLURM_NNODES
if task=$(field ArrayTaskId); then
  self=$(field ArrayJobId)_$task # the number alone may be that of the whole array
else
  self=$SLURM_JOB_ID
  unset "${!SLURM_ARRAY_@}"
fi
[[ $record =~ (gres[:/]|GRES=)gpu ]] || unset SLURM_GPUS_ON_NODE
# options of srun, which gives a step all GPUs of its job unless told otherwise; places of ranks
unset "${!SLURM_NTASKS@}" SLURM_NPROCS SLURM_GPUS "${!SLURM_GPUS_PER@}" "${!SLURM_TRES_PER@}" SLURM_CPUS_PER_TASK
memory=none # of these srun takes one
[[ ! $record =~ " MinMemory"(CPU|Node)=[1-9] ]] || memory=SLURM_MEM_PER_${BASH_REMATCH[1]^^}
for name in "${!SLURM_MEM_PER_@}"; do [ "$name" = "$memory" ] || unset "$name"; done
unset RANK WORLD_SIZE LOCAL_RANK MASTER_ADDR MASTER_PORT "${!TORCHELASTIC_@}" "${!OMPI_@}" "${!PMI@}" "${!PALS_@}" "${!MV2_@}"
ranks=${HPCTRACK_RANKS_PER_NODE:-${SLURM_GPUS_ON_NODE:-1}}
trap 'told=1; kill -USR1 $step 2>/dev/null || true' USR1 TERM # srun passes it on to all ranks

say() { echo "slurm: $* ($(date '+%F %T'), job $SLURM_JOB_ID, restart $restarts)"; }

run() { # a job step; returns its exit code. Launchers that are left 60 s after the first one ended are ended, too
  local seconds=0
  srun --kill-on-bad-exit=0 --wait=60 "$@" &
  step=$!
  [ -z "$told" ] || kill -USR1 $step # told while the step was being prepared
  while kill -0 $step 2>/dev/null; do
    [ -n "$told" ] || { wait $step || true; continue; } # a signal to this shell ends the wait early
    sleep 1
    seconds=$((seconds + 1))
    [ $((seconds % 15)) != 0 ] || kill -USR1 $step 2>/dev/null || true # ranks that were still starting have not heard it
  done
  wait $step
}

address() { # of the first node, as Slurm knows it
  scontrol show node "$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)" | sed -n 's/.*NodeAddr=\([^ ]*\).*/\1/p'
}

launch() { # $1: nodes; the rest: a module and its arguments, on all ranks of these nodes
  local nodes=$1 id port
  shift
  starts=$((starts + 1)) id=$SLURM_JOB_ID.$restarts.$starts # another port each time: the last one may be held by something else
  port=${HPCTRACK_PORT:-$((20000 + (31 * SLURM_JOB_ID + 7 * restarts + starts) % 10000))}
  # a launcher's ranks share all CPUs of the job on their node; srun would give it one
  run --nodes "$nodes" --ntasks "$nodes" --ntasks-per-node 1 --cpus-per-task "$SLURM_CPUS_ON_NODE" --cpu-bind none python launch/node.py \
    --nnodes "$nodes" --nproc-per-node "$ranks" --rdzv-id "$id" --rdzv-backend c10d \
    --rdzv-conf "join_timeout=${HPCTRACK_MEETING_S:-300}" --rdzv-endpoint "$(address):$port" -m "$@"
}

requeue() { # back into the queue, unless the job is being cancelled
  if [ "$(field JobState "$(scontrol show job -o "$self" | sed 's/ JobName=.* UserId=/ UserId=/')")" != RUNNING ]; then
    say "preempted; the job is being ended, so it is not requeued"
  elif scontrol requeue "$self"; then # of an array, this task alone
    say "preempted; requeued"
  else
    say "preempted, and cannot be requeued; submit it again to go on"
  fi
  exit $PREEMPTED
}

until_done() { # a command, again after faults of the machine; ends the job when it is preempted or its input is bad
  local code attempt
  for attempt in $(seq 0 "${HPCTRACK_RESTARTS:-3}"); do
    [ -z "$told" ] || requeue
    "$@" && return
    code=$?
    case $code in
      $PREEMPTED | $((128 + 10)) | $((128 + 15))) requeue ;;
      $BAD_INPUT) exit $BAD_INPUT ;;
      129 | 130) exit "$code" ;; # SIGHUP or SIGINT: by hand
    esac
    [ -z "$told" ] || requeue
    say "attempt $((attempt + 1)) failed with exit code $code"
  done
  exit "$code"
}
