"""How much memory processes hold."""

from __future__ import annotations

import psutil


def sum_resident_mib(tree: psutil.Process) -> float:
    """Resident set sizes of a process and its descendants. Pages that they share count in each."""
    total = 0
    for process in [tree, *tree.children(recursive=True)]:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / 2**20
