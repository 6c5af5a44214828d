#!/bin/sh
# tools/train.slurm for real: a Slurm of one node is started here (slurmctld, slurmd, munged,
# all as this user, who must be root, with files and sockets of their own), an array of three
# tasks trains the toy's suite in slices and a last job merges them: the bytes of one run.
# Called by .ci/run; needs Debian's slurm-wlm and munge.

. tests/lib.sh
begin slurm
work=$(cd "$work" && pwd)
host=$(hostname -s)
out=$work/out

# Ports that are likely free: from this process's number.
port=$((20000 + $$ % 20000 * 2))

cat > "$work/slurm.conf" << C
ClusterName=qsae
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
SlurmdUser=root
SlurmctldPort=$port
SlurmdPort=$((port + 1))
AuthType=auth/munge
AuthInfo=socket=$work/munge.socket
CryptoType=crypto/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=batch_sched_delay=0,sched_min_interval=100000,sched_interval=2,bf_interval=2
NodeName=$host NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes=$host Default=YES MaxTime=60 State=UP
C
mkdir -p "$work/state" "$work/spool"
SLURM_CONF=$work/slurm.conf
export SLURM_CONF

# The daemons stay in the foreground, as children of this shell: so it can end them.
dd if=/dev/urandom of="$work/munge.key" bs=128 count=1 2> /dev/null
chmod 400 "$work/munge.key"
pids=
trap 'for p in $pids; do kill "$p"; done 2> /dev/null; wait' EXIT
munged --foreground --force --key-file="$work/munge.key" --socket="$work/munge.socket" \
    --pid-file="$work/munged.pid" --log-file="$work/munged.log" \
    --seed-file="$work/munged.seed" > "$work/munged.out" 2>&1 &
pids="$pids $!"
for _ in 1 2 3 4 5 6 7 8 9 10; do
    [ -S "$work/munge.socket" ] && break
    sleep 0.2
done
slurmctld -D > "$work/slurmctld.out" 2>&1 &
pids="$! $pids"
slurmd -D > "$work/slurmd.out" 2>&1 &
pids="$! $pids"
tries=0
until sinfo -h -o %T 2> /dev/null | grep -q idle; do
    tries=$((tries + 1))
    if [ $tries -gt 150 ]; then
        bad "the node does not come up: $(tail -n 3 "$work/slurmctld.log" "$work/slurmd.log" 2>&1)"
        finish
        exit 1
    fi
    sleep 0.2
done
ok

train() { # the settings of both
    "$@" "$BUILD/toy.qsae" --data examples/toy/corpus/valid.jsonl --sites resid_post,mlp_out \
        --layers 0-2 --width 64 --l0 8 --batch 256 --context 64 --tokens 20000 --buffer 8192 \
        --threads 1
}

QSAE=$BUILD/qsae
export QSAE
check "the array is submitted" train sh tools/train.slurm 3 "$out" > "$work/jobs"
check "one run alone" train "$BUILD/qsae" train -o "$work/alone" > "$work/alone.log"
tries=0
while squeue -h 2> /dev/null | grep -q .; do
    tries=$((tries + 1))
    [ $tries -le 300 ] || break
    sleep 0.2
done
check "the array's suite is that of one run" cmp "$out/suite.qsae" "$work/alone/suite.qsae"
check "three slices" [ "$(ls "$out"/suite-?-of-3.qsae 2> /dev/null | wc -l)" -eq 3 ]
if [ $failed -ne 0 ]; then
    cat "$work/jobs" "$out"/*.log >&2
    squeue >&2
fi
finish
