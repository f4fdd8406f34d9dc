#!/bin/bash
# A real multi-node SLURM cluster on this one machine: up.sh BASE. Started again it revives what is down.
#
# One "login" host (munged, slurmctld) and N "nodeK" hosts (slurmd); each host has its own PID, UTS, IPC, mount
# and network namespace, on a bridge that lives only inside them. Everything it writes lies in BASE, so that
# several clusters stand side by side. Needs root and
#   apt-get install -y --no-install-recommends slurmctld slurmd slurm-client munge tini iproute2 procps
# and neither systemd nor cgroups. Settings (environment, of the first start): NODES=4 CPUS=8 MEM=16000 GPUS=2
# (faked character devices) TASKS=1001 (MaxArraySize). Where file descriptor 9 is the read end of a pipe, all
# hosts end when its write end is closed, so that nothing outlives a killed test.
set -euo pipefail
BASE=$(realpath -m "${1:?usage: up.sh BASE}")
# One start or stop at a time; -o: daemons do not inherit the lock.
[ "${SLOCK:-}" ] || { mkdir -p "$BASE"; SLOCK=1 exec flock -o "$BASE/lock" "$0" "$BASE"; }
export BASE
HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source-path=SCRIPTDIR source=hosts.sh
. "$HERE/hosts.sh"
SUBNET=10.77.0

die() { echo "up.sh: $*" >&2; exit 1; }
for c in slurmctld slurmd sinfo munged tini unshare nsenter ip pgrep; do
  command -v $c >/dev/null || die "$c is missing: see the head of $0 for the packages"
done
address() { case $1 in login) echo $SUBNET.1 ;; *) echo $SUBNET.$((10 + ${1#node})) ;; esac; }
on() {
  local host=$1
  shift
  nsenter -t "$(init_of "$host")" -m -u -i -n -p --wd=/ \
    env -i PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin LANG=C.UTF-8 "$@"
}

host_up() { # make the namespaces of one host
  local host=$1 pid
  alive "$host" && return 0
  # shellcheck disable=SC2016  # expanded inside the namespaces
  NAME=$host setsid unshare -m -u -i -p -n --fork --kill-child --mount-proc bash -ec '
    hostname "$NAME"
    mount --bind "$BASE/etc/hosts" /etc/hosts
    mount --bind "$BASE/etc/nsswitch.conf" /etc/nsswitch.conf
    mkdir -p /etc/slurm
    mount --bind "$BASE/etc" /etc/slurm
    mount -t tmpfs -o size=2g,mode=1777 shm /dev/shm
    ip link set lo up
    : >"$BASE/run/$NAME.ready"
    if [ -e /proc/self/fd/9 ]; then exec tini -s -- cat <&9; else exec tini -s -- sleep infinity; fi
  ' </dev/null >>"$BASE/log/$host.host.log" 2>&1 &
  pid=$!
  echo "$pid $(start_time $pid)" >"$BASE/run/$host.pid"
  for _ in $(seq 250); do
    [ -e "$BASE/run/$host.ready" ] && break
    sleep .02
  done
  [ -e "$BASE/run/$host.ready" ] || { cat "$BASE/log/$host.host.log" >&2; die "host $host did not start"; }
  rm "$BASE/run/$host.ready"
  if [ "$host" = login ]; then
    nsenter -t "$(init_of login)" -n sh -ec \
      "ip link add br0 type bridge; ip addr add $(address login)/24 dev br0; ip link set br0 up"
  else
    ip link add "ve-$host" netns "$(init_of login)" type veth peer name eth0 netns "$(init_of "$host")"
    nsenter -t "$(init_of login)" -n ip link set "ve-$host" master br0 up
    nsenter -t "$(init_of "$host")" -n sh -ec \
      "ip addr add $(address "$host")/24 dev eth0; ip link set eth0 up"
  fi
}
daemon() { # daemon HOST NAME CMD...: start unless a process of that name runs on that host
  local host=$1 name=$2
  shift 2
  on "$host" pgrep -x "$name" >/dev/null && return 0
  on "$host" "$@" </dev/null >>"$BASE/log/$host.$name.out" 2>&1 9<&- && return 0
  tail -n 20 "$BASE/log/$host.$name.out" >&2
  die "$name on $host failed"
}

configure() {
  rm -rf "${BASE:?}"/{state,spool,log,run,etc,dev}
  mkdir -p "$BASE"/{etc,run,state,spool,log,dev}
  echo "NODES=$NODES" >"$BASE/run/settings"
  (umask 077 && head -c 128 /dev/urandom >"$BASE/etc/munge.key")
  {
    echo "127.0.0.1 localhost"
    echo "$(address login) login"
    for i in $(seq "$NODES"); do echo "$(address "node$i") node$i"; done
  } >"$BASE/etc/hosts"
  sed 's/^hosts:.*/hosts: files/' /etc/nsswitch.conf >"$BASE/etc/nsswitch.conf" # no DNS look-ups
  local gres=
  if [ "$GPUS" -gt 0 ]; then
    for g in $(seq 0 $((GPUS - 1))); do mknod "$BASE/dev/gpu$g" c 1 3; done # a /dev/null twin each
    echo "Name=gpu File=$BASE/dev/gpu[0-$((GPUS - 1))]" >"$BASE/etc/gres.conf"
    gres=Gres=gpu:$GPUS
  fi
  cat >"$BASE/etc/slurm.conf" <<CONF
ClusterName=test
SlurmctldHost=login($(address login))
SlurmctldPort=26817
CommunicationParameters=NoInAddrAny,NoCtldInAddrAny
AuthType=auth/munge
CredType=cred/munge
AuthInfo=socket=$BASE/run/munge.socket,cred_expire=5
SlurmUser=root
SlurmdUser=root
StateSaveLocation=$BASE/state
SlurmdSpoolDir=$BASE/spool/%n
SlurmctldPidFile=$BASE/run/slurmctld.nspid
SlurmdPidFile=$BASE/run/slurmd.%n.nspid
SlurmctldLogFile=$BASE/log/slurmctld.log
SlurmdLogFile=$BASE/log/slurmd.%n.log
MailProg=/bin/true
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
DefMemPerCPU=1000
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
MpiDefault=none
ReturnToService=2
SlurmdTimeout=5
MessageTimeout=10
TCPTimeout=2
KillWait=3
MinJobAge=3600
MaxArraySize=$TASKS
FirstJobId=$(($(date +%s) % 600000 * 100 + 1))
SchedulerParameters=sched_interval=2,bf_interval=2,batch_sched_delay=0
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SlurmctldParameters=preempt_send_user_signal
GresTypes=gpu
NodeName=DEFAULT CPUs=$CPUS RealMemory=$MEM $gres
$(for i in $(seq "$NODES"); do echo "NodeName=node$i NodeAddr=$(address "node$i") Port=$((26820 + i))"; done)
PartitionName=test Nodes=ALL Default=YES PriorityTier=1 State=UP MaxTime=INFINITE GraceTime=10
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF State=UP MaxTime=INFINITE
CONF
}

NODES=${NODES:-4} CPUS=${CPUS:-8} MEM=${MEM:-16000} GPUS=${GPUS:-2} TASKS=${TASKS:-1001}
if alive login; then
  # shellcheck source=/dev/null
  . "$BASE/run/settings"
else
  configure
fi
host_up login
daemon login munged munged --key-file="$BASE/etc/munge.key" --socket="$BASE/run/munge.socket" \
  --pid-file="$BASE/run/munged.nspid" --log-file="$BASE/log/munged.log" --seed-file="$BASE/run/munge.seed" --force
daemon login slurmctld slurmctld
for i in $(seq "$NODES"); do
  host_up "node$i"
  daemon "node$i" slurmd slurmd -N "node$i"
done

for w in $(seq 600); do # until every node answers
  n=$(on login sinfo -h -N -o '%N %T' 2>/dev/null | sort -u |
    grep -cE ' (idle|mixed|allocated|completing)$') || true
  [ "$n" = "$NODES" ] && { echo "up: $NODES nodes"; exit 0; }
  if [ $((w % 20)) = 15 ]; then # a node left drained or down comes back
    for x in $(on login sinfo -h -N -o '%N %T' | awk '$2 ~ /^(drain|down|fail)/ {print $1}' | sort -u); do
      on login scontrol update nodename="$x" state=resume 2>/dev/null || true
    done
  fi
  sleep .1
done
on login sinfo -N -l >&2
die "nodes are not idle after 60 s"
