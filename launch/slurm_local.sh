#!/usr/bin/env bash
# A Slurm cluster on this machine, for tests and development: one controller, several slurmd as nodes, no root needed.
#   bash launch/slurm_local.sh start         # then, in each shell that is to use it, the export line it prints
#   bash launch/slurm_local.sh stop          # jobs are cancelled, daemons ended by their own process ids, the folder removed
#   bash launch/slurm_local.sh run COMMAND   # start, run COMMAND with it, stop
# Several can run side by side, each in a folder of its own. From the environment:
#   HPCTRACK_SLURM_DIR    all of its state, logs and sockets   (default: /tmp/hpctrack-slurm-USER; keep the path short)
#   HPCTRACK_SLURM_NODES  nodes                                (default: 2)
#   HPCTRACK_SLURM_CPUS   CPUs a node claims to have           (default: 4; jobs may share this machine's real ones)
#   HPCTRACK_SLURM_GPUS   GPUs a node claims to have           (default: 0, at most 4; devices there are none)
#   HPCTRACK_SLURM_PORT   first of NODES + 1 ports in a row    (default: free ones are looked for)
# Partitions: regular; urgent, whose jobs preempt those of regular (SIGTERM, 20 s of grace, requeue).
# Needs Debian's packages slurm-wlm and munge.
set -euo pipefail
dir=${HPCTRACK_SLURM_DIR:-/tmp/hpctrack-slurm-$(id -un)}
nodes=${HPCTRACK_SLURM_NODES:-2}
cpus=${HPCTRACK_SLURM_CPUS:-4}
gpus=${HPCTRACK_SLURM_GPUS:-0}
export SLURM_CONF=$dir/slurm.conf PATH=$PATH:/usr/sbin:/sbin

die() { echo "slurm_local: error: $*" >&2; exit 2; }

free_ports() { # the first of nodes + 1 ports in a row on which nobody listens
  local try base offset
  for try in $(seq 50); do
    base=$((20000 + (RANDOM % 1200) * 10))
    for offset in $(seq 0 "$nodes"); do
      (exec 3<>"/dev/tcp/127.0.0.1/$((base + offset))") 2>/dev/null && continue 2
    done
    echo "$base"
    return
  done
  die "found no $((nodes + 1)) free ports in a row; set HPCTRACK_SLURM_PORT"
}

write_configuration() { # $1: first port
  local user memory
  user=$(id -un)
  memory=$(awk -v n="$nodes" '/MemTotal/ {print int($2 / 1024 / n * 0.9)}' /proc/meminfo)
  cat >"$SLURM_CONF" <<CONF
ClusterName=hpctrack
SlurmctldHost=localhost
SlurmctldPort=$1
SlurmUser=$user
SlurmdUser=$user
AuthType=auth/munge
AuthInfo=socket=$dir/munge.sock
CredType=cred/munge
StateSaveLocation=$dir/state
SlurmdSpoolDir=$dir/spool.%n
SlurmctldPidFile=$dir/slurmctld.pid
SlurmdPidFile=$dir/slurmd.%n.pid
SlurmctldLogFile=$dir/slurmctld.log
SlurmdLogFile=$dir/slurmd.%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerType=sched/backfill
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobRequeue=1
SlurmdParameters=config_overrides
MpiDefault=none
ReturnToService=2
KillWait=20
OverTimeLimit=0
NodeName=n[1-$nodes] NodeHostname=$(hostname -s) NodeAddr=127.0.0.1 Port=[$(($1 + 1))-$(($1 + nodes))] CPUs=$cpus RealMemory=$memory Gres=gpu:$gpus
PartitionName=regular Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
CONF
  for file in $(printf '%s\n' /dev/zero /dev/full /dev/null /dev/random | head -n "$gpus"); do
    echo "Name=gpu File=$file" # Slurm wants files that are there
  done >"$dir/gres.conf"
}

ours() { # whether process $1 is one of this cluster
  [ -n "$1" ] && tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline" | grep -qF "$dir/"
}

start() {
  local program node i
  for program in munged slurmctld slurmd sbatch; do
    command -v "$program" >/dev/null || die "$program is not installed (Debian: apt-get install slurm-wlm munge)"
  done
  [ ${#dir} -le 80 ] || die "$dir: too long for a socket's path; set HPCTRACK_SLURM_DIR to a shorter one"
  [ ! -e "$dir" ] || die "$dir exists: a cluster runs there, or has; stop it first, or set HPCTRACK_SLURM_DIR"
  mkdir -p "$dir/state"
  chmod 755 "$dir" # munge wants its socket's folder open to all, its key to nobody else
  (umask 077 && dd if=/dev/urandom of="$dir/munge.key" bs=128 count=1 status=none)
  write_configuration "${HPCTRACK_SLURM_PORT:-$(free_ports)}"
  munged --force --key-file="$dir/munge.key" --socket="$dir/munge.sock" --pid-file="$dir/munged.pid" \
    --seed-file="$dir/munge.seed" --log-file="$dir/munged.log" --num-threads=2
  slurmctld -c -f "$SLURM_CONF"
  for i in $(seq "$nodes"); do
    mkdir -p "$dir/spool.n$i"
    slurmd -f "$SLURM_CONF" -N "n$i"
  done
  for i in $(seq 150); do
    node=$(sinfo -h -N -p regular -t idle -o %N 2>/dev/null | wc -l)
    [ "$node" = "$nodes" ] && { echo "export SLURM_CONF=$SLURM_CONF"; return; }
    sleep 0.2
  done
  tail -n 5 "$dir"/*.log >&2
  stop
  die "the nodes did not come up within 30 s, see the logs above"
}

stop() {
  local file pid i
  [ -e "$SLURM_CONF" ] || die "$dir: no cluster of slurm_local.sh here"
  timeout 10 scancel --quiet --user "$(id -un)" 2>/dev/null || true
  for i in $(seq 60); do # until no step is left
    [ -z "$(timeout 10 squeue -h 2>/dev/null)" ] && break
    [ "$i" = 30 ] && timeout 10 scancel --quiet --signal=KILL --full --user "$(id -un)" 2>/dev/null || true
    sleep 0.2
  done
  for file in "$dir"/slurmd.*.pid "$dir/slurmctld.pid" "$dir/munged.pid"; do
    pid=$(cat "$file" 2>/dev/null || true)
    ours "$pid" || continue
    kill "$pid"
    for i in $(seq 100); do
      ours "$pid" || break # a zombie has no command line
      [ "$i" = 80 ] && kill -9 "$pid"
      sleep 0.1
    done
  done
  rm -rf "$dir"
}

case ${1:-} in
  start | stop) "$1" ;;
  run)
    shift
    [ $# -gt 0 ] || die "run needs a command"
    start
    trap stop EXIT
    "$@"
    ;;
  *) sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//p}' "$0" && exit 2 ;;
esac
