#!/usr/bin/env bash
# A SLURM cluster of two nodes in one machine: munge, slurmctld, and a slurmd in a namespace of its own for each node
# (Linux, root; Debian's slurm-wlm and munge).
#
#   unshare --mount --uts --pid --fork --mount-proc --kill-child tests/cluster/cluster.sh FOLDER PORT PORT PORT
#
# runs until its standard input ends. FOLDER gets slurm.conf for sbatch and scontrol, and the logs. Each node has one core,
# and two GPUs that are none. A node whose slurmd is killed has lost its power; it stays off while there is FOLDER/n2.off.
set -eu
folder=$1
ports=("${@:2}")
mkdir "$folder"/{state,n1,n2}
hostname head
echo "127.0.0.1 localhost head n1 n2" >"$folder/hosts"
mount --bind "$folder/hosts" /etc/hosts

cat >"$folder/slurm.conf" <<END
ClusterName=alexnet
SlurmctldHost=head(127.0.0.1)
SlurmctldPort=${ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
# A job that is begun again waits for its old credential's end, which is usually two minutes.
AuthInfo=socket=$folder/munge.socket,cred_expire=5
StateSaveLocation=$folder/state
SlurmdSpoolDir=$folder/%n
SlurmctldPidFile=$folder/slurmctld.pid
SlurmdPidFile=$folder/%n.pid
SlurmctldLogFile=$folder/slurmctld.log
SlurmdLogFile=$folder/%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
SlurmdTimeout=5
KillWait=20
ReturnToService=2
JobCompType=jobcomp/none
GresTypes=gpu
NodeName=n1 NodeAddr=127.0.0.1 Port=${ports[1]} CPUs=8 Gres=gpu:2
NodeName=n2 NodeAddr=127.0.0.1 Port=${ports[2]} CPUs=8 Gres=gpu:2
PartitionName=all Nodes=n1,n2 Default=YES
END
for node in n1 n2; do
    printf "NodeName=$node Name=gpu File=%s\n" /dev/zero /dev/null
done >"$folder/gres.conf"
export SLURM_CONF=$folder/slurm.conf

head -c 1024 /dev/urandom >"$folder/munge.key"
chmod 400 "$folder/munge.key"
munged --force --key-file="$folder/munge.key" --socket="$folder/munge.socket" --pid-file="$folder/munge.pid" \
    --log-file="$folder/munge.log" --seed-file="$folder/munge.seed" 2>"$folder/munged.log"
slurmctld -D >"$folder/head.log" 2>&1 &
# The cores that this process may use, written out: 0,1,2,...
mapfile -t cores < <(taskset -cp $$ | sed 's/.*: //' | tr ',' '\n' | while IFS=- read -r first last; do
    seq "$first" "${last:-$first}"
done)
for node in n1 n2; do
    core=${cores[${node#n} % ${#cores[@]}]}
    while true; do
        taskset -c "$core" unshare --uts --pid --mount --fork --mount-proc --kill-child bash -c "hostname $node; exec slurmd -D -N $node" \
            >>"$folder/$node.out" 2>&1 || true
        while [ -e "$folder/$node.off" ]; do sleep 0.2; done
    done &
done
cat >/dev/null
