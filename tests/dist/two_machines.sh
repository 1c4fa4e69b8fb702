#!/usr/bin/env bash
# Two machines in small: runs a command in each of two network namespaces, joined by a link of limited speed.
#
#   tests/dist/two_machines.sh 1gbit sh -c 'accelerate launch --machine_rank $MACHINE_RANK ...'
#
# The first word is the link's speed in each direction as tc knows it, or `none`. The command sees MACHINE_RANK (0 or 1),
# MAIN_ADDRESS (of machine 0) and GLOO_SOCKET_IFNAME, and has half of this box's cores. Standard input is empty. The exit
# code is machine 0's, else machine 1's; 77 where namespaces are not allowed, with the reason on stderr. Nothing is left
# behind. SIGTERM ends both machines.
set -euo pipefail

rate=$1
shift
name=two$$
machines=("${name}a" "${name}b")

refuse() {
    echo "two machines: $1" >&2
    exit 77
}

# shellcheck disable=SC2329 # the trap calls it
remove() {
    for machine in "${machines[@]}"; do
        # shellcheck disable=SC2046 # a list of numbers
        kill -9 $(ip netns pids "$machine" 2>/dev/null) 2>/dev/null || true
        ip netns del "$machine" 2>/dev/null || true
    done
}

for program in ip tc taskset; do
    command -v "$program" >/dev/null || refuse "$program is not installed"
done
ip netns add "${machines[0]}" 2>/dev/null || refuse "network namespaces are not allowed here"
trap remove EXIT
trap 'exit 143' TERM INT
ip netns add "${machines[1]}"
ip link add "${name}0" type veth peer name "${name}1" || refuse "there are no veth links"
for rank in 0 1; do
    machine=${machines[$rank]}
    ip link set "${name}$rank" netns "$machine"
    ip -n "$machine" addr add "10.77.0.$((rank + 1))/24" dev "${name}$rank"
    ip -n "$machine" link set "${name}$rank" up
    ip -n "$machine" link set lo up
    if [ "$rate" != none ]; then
        tc -n "$machine" qdisc add dev "${name}$rank" root tbf rate "$rate" burst 256kb latency 50ms ||
            refuse "the kernel has no tbf to limit a link with"
    fi
done

cores=$(nproc)
half=$(((cores + 1) / 2))
processes=()
for rank in 0 1; do
    first=$((rank * (cores / 2)))
    MACHINE_RANK=$rank MAIN_ADDRESS=10.77.0.1 GLOO_SOCKET_IFNAME=${name}$rank \
        ip netns exec "${machines[$rank]}" taskset -c "$first-$((first + half - 1))" "$@" </dev/null &
    processes+=($!)
done
codes=(0 0)
for rank in 0 1; do
    wait "${processes[$rank]}" || codes[rank]=$?
done
[ "${codes[0]}" -eq 0 ] || exit "${codes[0]}"
exit "${codes[1]}"
