#!/usr/bin/env bash
# A real SLURM of one node in one folder, to test against: no systemd, no control groups, everything on 127.0.0.1.
#
#   eval "$(scripts/slurm-node.sh start DIR)"    installs what is missing (Debian, root), starts, sets SLURM_CONF and PATH
#   scripts/slurm-node.sh stop DIR               cancels all jobs, waits, ends the daemons
#
# Use a fresh DIR for each cluster: wiped state would start job numbers again.
set -euo pipefail

say() { echo "slurm-node: $*" >&2; }

fail() {
  say "$*"
  exit 1
}

install_packages() {
  command -v slurmctld >/dev/null && command -v slurmd >/dev/null && command -v munged >/dev/null && return
  [ "$(id -u)" = 0 ] || fail "slurm-wlm and munge are not installed, and only root can install them"
  for attempt in 1 2 3; do
    say "installing slurm-wlm and munge (attempt $attempt)"
    if apt-get update -qq >&2 && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
      slurm-wlm munge >&2; then
      return
    fi
    sleep 5
  done
  fail "slurm-wlm and munge could not be installed"
}

free_port() {
  python3 -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])'
}

write_configuration() {
  local folder=$1 cpus memory_mib
  cpus=$(nproc)
  memory_mib=$(awk '/MemTotal/ {print int($2 / 1024 * 0.7)}' /proc/meminfo)
  cat >"$folder/slurm.conf" <<CONF
ClusterName=onenode
SlurmctldHost=localhost(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket=$folder/run/munge.socket,cred_expire=10
CredType=cred/munge
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
SlurmctldPort=$(free_port)
SlurmdPort=$(free_port)
SlurmctldPidFile=$folder/run/slurmctld.pid
SlurmdPidFile=$folder/run/slurmd.pid
SlurmctldLogFile=$folder/log/slurmctld.log
SlurmdLogFile=$folder/log/slurmd.log
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/spool
ProctrackType=proctrack/pgid
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
ReturnToService=2
JobRequeue=1
KillWait=5
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=1
NodeName=localhost NodeAddr=127.0.0.1 CPUs=$cpus CoresPerSocket=$cpus RealMemory=$memory_mib
PartitionName=debug Nodes=localhost Default=YES MaxTime=INFINITE DefaultTime=10 DefMemPerCPU=500 State=UP
CONF
  # Accounting is off; what asks sacct for states gets those of the queue.
  cat >"$folder/bin/sacct" <<'SACCT'
#!/bin/sh
echo "JobID|State|NodeList"
exec squeue -h -t all -o "%i|%T|%N"
SACCT
  chmod +x "$folder/bin/sacct"
}

start() {
  local folder
  mkdir -p "$1"
  folder=$(realpath "$1")
  [ -e "$folder/slurm.conf" ] && fail "$folder holds a cluster already: name a fresh folder"
  install_packages
  mkdir -p "$folder"/{run,log,state,spool,bin}
  chmod 755 "$folder" "$folder"/*
  (umask 077 && head -c 128 /dev/urandom >"$folder/run/munge.key")
  write_configuration "$folder"
  export SLURM_CONF=$folder/slurm.conf
  trap "stop '$folder'" EXIT # what was started is ended if the rest does not come up

  setsid munged --foreground --force --key-file="$folder/run/munge.key" --socket="$folder/run/munge.socket" \
    --pid-file="$folder/run/munged.pid" --log-file="$folder/log/munged.log" --seed-file="$folder/run/munge.seed" \
    >"$folder/log/munged.out" 2>&1 </dev/null &
  echo $! >"$folder/run/munged.started"
  wait_for "munged" munge --socket="$folder/run/munge.socket" -n
  setsid slurmctld -D >"$folder/log/slurmctld.out" 2>&1 </dev/null &
  echo $! >"$folder/run/slurmctld.started"
  setsid slurmd -D -N localhost >"$folder/log/slurmd.out" 2>&1 </dev/null &
  echo $! >"$folder/run/slurmd.started"
  wait_for "the node" node_is_idle
  trap - EXIT
  say "one node with $(nproc) processors is up in $folder"
  echo "export SLURM_CONF='$folder/slurm.conf' PATH='$folder/bin':\"\$PATH\""
}

node_is_idle() { sinfo -h -o %T | grep -q '^idle$'; }

wait_for() {
  local what=$1
  shift
  for _ in $(seq 100); do
    if "$@" >/dev/null 2>&1; then return; fi
    sleep 0.2
  done
  fail "$what did not start; see the logs"
}

stop() {
  local folder
  folder=$(realpath "$1")
  [ -e "$folder/slurm.conf" ] || fail "$folder holds no cluster"
  export SLURM_CONF=$folder/slurm.conf
  # daemons ended under running jobs leave orphans
  timeout 10 scancel --user=root --full >/dev/null 2>&1 || true
  for _ in $(seq 60); do
    [ -z "$(timeout 5 squeue -h 2>/dev/null)" ] && break
    sleep 0.5
  done
  for name in slurmd slurmctld munged; do
    if [ -e "$folder/run/$name.started" ]; then
      end "$(cat "$folder/run/$name.started")"
    fi
  done
  say "stopped"
}

end() {
  kill "$1" 2>/dev/null || return 0
  for _ in $(seq 50); do
    kill -0 "$1" 2>/dev/null || return 0
    sleep 0.1
  done
  kill -9 "$1" 2>/dev/null || true
}

case "${1:-}" in
  start) start "${2:?a folder}" ;;
  stop) stop "${2:?a folder}" ;;
  *)
    sed -n 's/^# \{0,1\}//p' "$0" | sed -n 2,7p >&2
    exit 2
    ;;
esac
