"""How fast the processes of this job exchange numbers: a short all-reduce probe."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, cast

import torch
import torch.distributed as dist
from torch import Tensor

from alexnet_dist.costs.model import Link, Links
from alexnet_dist.costs.transfers import all_reduce_hops
from alexnet_dist.parallel.replicas import COMPRESSION_HOOKS

SMALLEST_BYTES, LARGEST_BYTES = 2**18, 2**28
LATENCY_CALLS = 11
WINDOWS = 4  # measurements that share the probe's seconds
PIECE_MIB = 4  # casts of one piece run while another travels, as with DistributedDataParallel's buckets


@dataclass(frozen=True)
class LinkProbe:
    """What all-reduces within a group of processes cost. The bytes are those that each process sends.

    Args:
        processes: in the group.
        tensor_bytes: reduced at a time, as fp32.
        bus_bytes_per_second: 2 (n - 1) / n of the tensor over the time: the speed of the slowest link on the ring.
        busy_seconds_per_byte: that a process's cores work for it; 0 where the tensor is on a GPU.
        compressed_bytes_per_second: the same for gradients that travel as bf16: the bytes are half as many, and the
            time includes the casts there and back, piece by piece, as under DistributedDataParallel.
        compressed_busy_seconds_per_byte: likewise.
        latency_seconds: of an all-reduce of one number.
    """

    processes: int
    tensor_bytes: int
    bus_bytes_per_second: float
    busy_seconds_per_byte: float
    compressed_bytes_per_second: float
    compressed_busy_seconds_per_byte: float
    latency_seconds: float

    @property
    def compression_gain(self) -> float:
        """How much sooner gradients arrive that are compressed to bf16: 2 where casting costs nothing."""
        return 2 * self.compressed_bytes_per_second / self.bus_bytes_per_second

    @property
    def plain(self) -> Link:
        """The cost model's link for what travels as it is."""
        return Link(self.bus_bytes_per_second, self.hop_seconds, self.busy_seconds_per_byte)

    @property
    def compressed(self) -> Link:
        """The cost model's link for compressed gradients."""
        return Link(self.compressed_bytes_per_second, self.hop_seconds, self.compressed_busy_seconds_per_byte)

    @property
    def hop_seconds(self) -> float:
        """One wait for a neighbor."""
        return self.latency_seconds / all_reduce_hops(self.processes)


class _Cost(NamedTuple):
    """Of one call, in the slowest and in the busiest process.

    Args:
        seconds: until it was done.
        busy_seconds: that the process's cores worked, over their number.
    """

    seconds: float
    busy_seconds: float


def probe_links(device: torch.device, machines: Sequence[Sequence[int]], seconds: float) -> dict[str, LinkProbe]:
    """Probe all processes together, then, where machines have several each, those of every machine among themselves.

    Every process must call this.

    Args:
        device: where the network lives; its memory is what is reduced.
        machines: ranks of each machine.
        seconds: for each of the probes.

    Returns:
        {"between": ..., "inside": ...}: over the machines, and within them; one of them is missing where there is one
        machine, or one process on each. Times are the slowest process's; all get the same.
    """
    processes = sum(len(ranks) for ranks in machines)
    if processes == 1:
        return {}
    everyone = cast(dist.ProcessGroup, dist.group.WORLD)
    if len(machines) == 1:
        return {"inside": _probe(device, everyone, seconds)}
    probes = {"between": _probe(device, everyone, seconds)}
    if max(map(len, machines)) > 1:
        # new_group is called for every machine in every process, in the same order.
        groups = [cast(dist.ProcessGroup, dist.new_group(list(ranks))) for ranks in machines]
        mine = next(i for i, ranks in enumerate(machines) if dist.get_rank() in ranks)
        inside = _probe(device, groups[mine], seconds) if len(machines[mine]) > 1 else None
        found: list[LinkProbe | None] = [None] * processes
        dist.all_gather_object(found, inside)
        probes["inside"] = min((probe for probe in found if probe), key=lambda probe: probe.bus_bytes_per_second)
    return probes


def _probe(device: torch.device, group: dist.ProcessGroup, seconds: float) -> LinkProbe:
    window = seconds / WINDOWS / 2  # the probe's two kinds share its time
    one = torch.zeros(1, device=device)
    latencies = [_time(_all_reduce, one, group).seconds for _ in range(LATENCY_CALLS)]
    size = SMALLEST_BYTES
    spent = _time(_all_reduce, _make(size, device), group).seconds  # the first call of a size also makes buffers
    spent = _time(_all_reduce, _make(size, device), group).seconds
    while spent < window / 2 and size < LARGEST_BYTES:
        size = min(LARGEST_BYTES, size * (2 if spent > window / 8 else 4))
        spent = _time(_all_reduce, _make(size, device), group).seconds
    values = _make(size, device)
    calls = max(1, min(200, int(window / max(spent, 1e-6))))
    _time(_all_reduce_compressed, values, group)
    plain, compressed = (
        _median([_time(reduce, values, group, calls) for _ in range(WINDOWS)])
        for reduce in (_all_reduce, _all_reduce_compressed)
    )
    count = dist.get_world_size(group)
    sent = 2 * (count - 1) / count * size
    half = sent / 2
    return LinkProbe(
        processes=count,
        tensor_bytes=size,
        bus_bytes_per_second=sent / plain.seconds,
        busy_seconds_per_byte=plain.busy_seconds / sent,
        compressed_bytes_per_second=half / compressed.seconds,
        compressed_busy_seconds_per_byte=compressed.busy_seconds / half,
        latency_seconds=statistics.median(latencies[1:]),
    )


def _median(costs: Sequence[_Cost]) -> _Cost:
    return _Cost(*map(statistics.median, zip(*costs, strict=True)))


def _all_reduce(values: Tensor, group: dist.ProcessGroup) -> None:
    dist.all_reduce(values, group=group)


def _all_reduce_compressed(values: Tensor, group: dist.ProcessGroup) -> None:
    """What DistributedDataParallel does with its buckets."""
    hook: Any = COMPRESSION_HOOKS["bf16"]
    pieces = torch.split(values, PIECE_MIB * 2**20 // values.element_size())
    # The hook takes a bucket as a tuple, too; a GradBucket cannot be made from Python.
    for flight in [hook(group, (piece,)) for piece in pieces]:
        flight.wait()


def _make(size: int, device: torch.device) -> Tensor:
    return torch.zeros(size // 4, device=device)  # fp32


def _time(
    reduce: Callable[[Tensor, dist.ProcessGroup], None], values: Tensor, group: dist.ProcessGroup, calls: int = 1
) -> _Cost:
    """What one reduction costs; equal in all processes, so that all choose alike."""
    _wait(values)
    dist.barrier(group)
    start, busy = time.perf_counter(), time.process_time()
    for _ in range(calls):
        reduce(values, group)
    _wait(values)
    seconds, busy = time.perf_counter() - start, (time.process_time() - busy) / torch.get_num_threads()
    if values.is_cuda:  # waiting for the device is no work
        busy = 0.0
    spent = torch.tensor([seconds, busy], dtype=torch.float64, device=values.device) / calls
    dist.all_reduce(spent, op=dist.ReduceOp.MAX, group=group)
    return _Cost(*spent.tolist())


def _wait(values: Tensor) -> None:
    if values.is_cuda:
        torch.cuda.synchronize(values.device)


def links_from_probe(probes: dict[str, LinkProbe], per_machine: int) -> Links:
    """The cost model's links. Where one kind was not probed, the other stands for it."""
    inside = probes.get("inside", probes.get("between"))
    between = probes.get("between", inside)
    if inside is None or between is None:
        raise ValueError("nothing was probed")
    return Links(between.plain, inside.plain, between.compressed, inside.compressed, per_machine)
