#!/usr/bin/env bash
# Two machines in small: two network namespaces joined by a cable of limited speed, each with one core (Linux, root).
#
#   tests/dist/two_machines.sh RATE COMMAND...
#
# runs COMMAND in both at once; the word MACHINE_RANK in it becomes 0 or 1. RATE is tc's (1gbit), or `unlimited`.
# node-a, machine 0, is 192.0.2.1 at its eth0, and node-b is 192.0.2.2. To itself each is 127.0.1.1, as in Debian's own
# /etc/hosts. Ends with the first exit code that is not 0; with 77, and the reason, where it is not allowed.
set -u
rate=$1
shift
names=(alexnet-$$-0 alexnet-$$-1)
hosts=(node-a node-b)
cables=(an$$-0 an$$-1)

clean_up() {
    for name in "${names[@]}"; do
        ip netns del "$name" 2>/dev/null
        rm -rf "/etc/netns/$name"
    done
}
trap clean_up EXIT
trap 'exit 143' TERM
trap 'exit 130' INT

connect() {
    ip link add "${cables[0]}" type veth peer name "${cables[1]}" || return
    for rank in 0 1; do
        ip netns add "${names[rank]}" || return
        ip link set "${cables[rank]}" netns "${names[rank]}" name eth0 || return
        ip -n "${names[rank]}" addr add "192.0.2.$((rank + 1))/24" dev eth0 || return
        ip -n "${names[rank]}" link set eth0 up || return
        ip -n "${names[rank]}" link set lo up || return
        # `ip netns exec` shows it as /etc/hosts.
        mkdir -p "/etc/netns/${names[rank]}" || return
        printf '127.0.0.1 localhost\n127.0.1.1 %s\n192.0.2.%d %s\n' \
            "${hosts[rank]}" $((2 - rank)) "${hosts[1 - rank]}" >"/etc/netns/${names[rank]}/hosts" || return
        [ "$rate" = unlimited ] || ip netns exec "${names[rank]}" \
            tc qdisc add dev eth0 root tbf rate "$rate" burst 256kb latency 50ms || return
    done
}

if ! reason=$(connect 2>&1); then
    ip link del "${cables[0]}" 2>/dev/null
    echo "no network namespaces or no tc here: ${reason:-unknown}" >&2
    exit 77
fi

# The cores that this process may use, written out: 0,1,2,...
mapfile -t cores < <(taskset -cp $$ | sed 's/.*: //' | tr ',' '\n' | while IFS=- read -r first last; do
    seq "$first" "${last:-$first}"
done)
children=()
for rank in 0 1; do
    GLOO_SOCKET_IFNAME=eth0 NCCL_SOCKET_IFNAME=eth0 OMP_NUM_THREADS=1 \
        ip netns exec "${names[rank]}" unshare --uts bash -c 'hostname "$0"; exec "$@"' "${hosts[rank]}" \
        taskset -c "${cores[rank % ${#cores[@]}]}" "${@//MACHINE_RANK/$rank}" &
    children+=($!)
done
trap 'kill "${children[@]}" 2>/dev/null; wait; exit 143' TERM
trap 'kill "${children[@]}" 2>/dev/null; wait; exit 130' INT
code=0
for child in "${children[@]}"; do
    wait "$child"
    status=$?
    [ "$code" != 0 ] || code=$status
done
exit "$code"
