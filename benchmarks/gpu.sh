#!/usr/bin/env bash
# Everything that wants a GPU in one command, the most valuable first, within a lease of ten minutes.
#
#   benchmarks/gpu.sh OUT [--data.root PICTURES] [--seconds 560]
#
# Figures go to OUT/rows.jsonl, a line each, and are on the disk before the next is measured. What breaks the process
# (a fault of a kernel leaves its CUDA context useless) costs its own section: the next start goes on with the one after.
set -u
[ $# -ge 1 ] || { sed -n '2,7s/^# \{0,1\}//p' "$0"; exit 2; }
out=$1
shift
cd "$(dirname "$0")/.." || exit
export PYTHONPATH=$PWD PYTHONUNBUFFERED=1
for _ in 1 2 3 4 5; do
    python benchmarks/gpu.py --out "$out" "$@"
    code=$?
    case $code in 0 | 2 | 5 | 130) break ;; esac # done, or nothing that another start could mend
done
exit $code
