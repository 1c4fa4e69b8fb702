"""What a step costs under each strategy: seconds, bytes sent and memory, from a network, a computer and its links.

Pure arithmetic, no process and no tensor. A prediction is a band: its fast end hides communication behind the backward
pass as far as the order of the layers and its own need of processors allow, its slow end hides nothing. Published runs
lie between the two where the software is recent and the devices reach each other directly; `published.py` holds that.
The fast end is the one to expect: the runs that were timed here came within a quarter of it (benchmarks/parallel.py).

Words: N processes, b images per process and step. Bytes are those that one process sends, as collectives on a ring
send them: 2 (n - 1) / n of a tensor for an all-reduce over n processes, n - 1 times its own part for an all-gather and
for its reverse.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from alexnet_dist.parallel.hybrid import CUT_LAYERS
from alexnet_dist.parallel.network_size import NetworkSize
from alexnet_dist.parallel.towers import NUM_TOWERS

StrategyName = Literal["ddp", "towers", "hybrid"]
ByteSize = Literal[2, 4]

STATE_BYTES = 12  # of a parameter: fp32 weight, gradient and momentum
HALF_PRECISION = 2  # bytes; autocast keeps such a copy of the parameters during the step
INDEX_BYTES = 8  # max pooling keeps an int64 for each output


@dataclass(frozen=True)
class Compute:
    """How fast one process computes, alone, on the whole network.

    Args:
        seconds_per_image: forward and backward of an image.
        seconds_per_update: what does not depend on the batch: weights read, gradients written, the optimizer.
    """

    seconds_per_image: float
    seconds_per_update: float = 0.0

    def step_seconds(self, images: int) -> float:
        """A step of one process that trains alone."""
        return self.seconds_per_update + images * self.seconds_per_image


@dataclass(frozen=True)
class Link:
    """What joins processes.

    Args:
        bytes_per_second: one direction (bus bandwidth).
        latency: seconds of one hop.
        computed_seconds_per_byte: what sending takes from the processors that compute: that part hides nowhere. 0 where
            it takes nothing from them, as between GPUs.
    """

    bytes_per_second: float
    latency: float = 20e-6
    computed_seconds_per_byte: float = 0.0


@dataclass(frozen=True)
class Links:
    """What joins the processes of a job.

    Args:
        between: from one machine to the others, all its processes together.
        inside: between the processes of a machine.
        between_compressed: as `between`, for gradients in half precision, casts included; None = like all else.
        inside_compressed: as `inside`, likewise. Where processors carry the bytes, casting and adding up half precision
            can take as long as sending twice as much.
        per_machine: processes on each machine.
    """

    between: Link
    inside: Link
    between_compressed: Link | None = None
    inside_compressed: Link | None = None
    per_machine: int = 8

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Links:
        """Read what `dataclasses.asdict` wrote; KeyError or TypeError where it did not."""
        names = ("between", "inside", "between_compressed", "inside_compressed")
        links = {name: Link(**values[name]) for name in names if values[name] is not None}
        return cls(**links, per_machine=values["per_machine"])


@dataclass(frozen=True)
class Strategy:
    """A way to spread the work.

    Args:
        name: as in parallel.strategy.
        gradient_bytes: of a gradient on its way: 4, or 2 where it is compressed to half precision.
        exchange_bytes: of an activation or its gradient on its way between towers or shards.
        shards: processes that share fc6 and fc7 under hybrid; None = all.
    """

    name: StrategyName
    gradient_bytes: ByteSize = 4
    exchange_bytes: ByteSize = 4
    shards: int | None = None

    def __str__(self) -> str:
        kind = {2: "bf16", 4: "fp32"}
        if self.name == "ddp":
            return f"ddp {kind[self.gradient_bytes]}"
        suffix = f" of {self.shards}" if self.shards else ""
        compressed = f", gradients {kind[2]}" if self.gradient_bytes == HALF_PRECISION else ""
        return f"{self.name}{suffix} {kind[self.exchange_bytes]}{compressed}"


@dataclass(frozen=True)
class Transfer:
    """Collectives of one kind in a step.

    Args:
        what: is sent.
        sent: bytes that one process sends.
        members: processes in the group.
        stride: distance between neighbouring ranks of the group; as many groups lie side by side.
        hops: waits for a neighbour, one after another.
        is_hidden: whether it can travel while the convolutions go backward.
        is_gradient: of the parameters, averaged over replicas; else activations cross within a network, or back.
        is_compressed: a gradient that is cast to half precision to travel, and back.
    """

    what: str
    sent: float
    members: int
    stride: int = 1
    hops: int = 0
    is_hidden: bool = False
    is_gradient: bool = False
    is_compressed: bool = False


@dataclass(frozen=True)
class Prediction:
    """A step under one strategy.

    Args:
        strategy: which.
        processes: in all.
        images: per step, over all processes.
        compute_seconds: of each process.
        fastest_seconds: step, with communication hidden as far as it can be.
        slowest_seconds: step, with nothing hidden.
        bytes_sent: by one process in a step.
        memory_bytes: of one process: weights, gradients, momentum and activations, without the libraries' own.
    """

    strategy: Strategy
    processes: int
    images: int
    compute_seconds: float
    fastest_seconds: float
    slowest_seconds: float
    bytes_sent: int
    memory_bytes: int

    @property
    def step_seconds(self) -> float:
        """The step to expect: the fast end."""
        return self.fastest_seconds

    @property
    def images_per_second(self) -> float:
        """Over all processes."""
        return self.images / self.step_seconds


def refuse(network: NetworkSize, strategy: Strategy, processes: int) -> str | None:
    """Why a strategy cannot be used on so many processes; None where it can."""
    if strategy.name == "towers":
        if not network.has_towers:
            return "the network has no two towers"
        if processes % NUM_TOWERS:
            return "needs an even number of processes"
    if strategy.name == "hybrid":
        shards = strategy.shards or processes
        if network.groups["fc6"] > 1:
            return "fc6 and fc7 are in groups"
        if network.fc_width % shards:
            return f"{shards} shards do not divide fc6's {network.fc_width} outputs"
        if processes % shards:
            return f"{processes} processes do not make groups of {shards}"
    return None


def list_transfers(network: NetworkSize, strategy: Strategy, processes: int, images: int) -> list[Transfer]:
    """What one process sends in a step.

    Args:
        network: which.
        strategy: how it is spread; it must not be refused.
        processes: in all.
        images: per process and step.
    """
    transfers = {"ddp": _ddp, "towers": _towers, "hybrid": _hybrid}[strategy.name](network, strategy, processes, images)
    return [transfer for transfer in transfers if transfer.members > 1]


def _ddp(network: NetworkSize, strategy: Strategy, processes: int, images: int) -> list[Transfer]:
    fully_connected = network.num_parameters - network.num_convolution
    return [
        _all_reduce("fully connected gradients", fully_connected, strategy, processes, is_hidden=True),
        _all_reduce("convolution gradients", network.num_convolution, strategy, processes),
    ]


def _towers(network: NetworkSize, strategy: Strategy, processes: int, images: int) -> list[Transfer]:
    """A pair works on the images of two processes, each on half of the network.

    A layer in one group first gathers the other tower's half of its input; going backward, each tower sends the
    gradient of the other's half. What both contribute to fc8's outputs is added up, for which nothing returns.
    """
    pair_images = NUM_TOWERS * images
    met = meeting_points(network)
    half = sum(network.inputs[name] for name in met) // NUM_TOWERS * pair_images * strategy.exchange_bytes
    logits = pair_images * network.num_classes * strategy.exchange_bytes
    replicas = processes // NUM_TOWERS
    bias = network.num_classes  # of fc8, which both towers hold
    fully_connected = (network.num_parameters - network.num_convolution + bias) // NUM_TOWERS
    return [
        Transfer("activations", half + logits, NUM_TOWERS, hops=len(met) + 1),
        Transfer("their gradients", half, NUM_TOWERS, hops=len(met)),
        _all_reduce("fully connected gradients", fully_connected, strategy, replicas, NUM_TOWERS, is_hidden=True),
        _all_reduce("convolution gradients", network.num_convolution // NUM_TOWERS, strategy, replicas, NUM_TOWERS),
    ]


def meeting_points(network: NetworkSize) -> list[str]:
    """Layers that read both towers whole: conv3, fc6 and fc7 of the paper's network. fc8 reads each on its own."""
    return [name for name, groups in network.groups.items() if groups == 1 and name not in ("conv1", "fc8")]


def _hybrid(network: NetworkSize, strategy: Strategy, processes: int, images: int) -> list[Transfer]:
    """fc6 and fc7 see the images of their group, each process with its share of the outputs; fc8 is data parallel.

    fc6 and fc7 gather their inputs from the whole group; fc7's outputs go back to the process whose image they are of.
    """
    shards = strategy.shards or processes
    gathered = (shards - 1) * images * sum(network.inputs[name] for name in CUT_LAYERS)
    returned = (shards - 1) / shards * images * network.inputs["fc8"]
    sent = (gathered + returned) * strategy.exchange_bytes
    hops = (len(CUT_LAYERS) + 1) * (shards - 1)
    share = sum(network.parameters[name] for name in CUT_LAYERS) // shards
    return [
        Transfer("activations", sent, shards, hops=hops),
        Transfer("their gradients", sent, shards, hops=hops),
        _all_reduce("fc6 and fc7 gradients", share, strategy, processes // shards, shards, is_hidden=True),
        _all_reduce("fc8 gradients", network.parameters["fc8"], strategy, processes, is_hidden=True),
        _all_reduce("convolution gradients", network.num_convolution, strategy, processes),
    ]


def _all_reduce(
    what: str, count: int, strategy: Strategy, members: int, stride: int = 1, is_hidden: bool = False
) -> Transfer:
    sent = 2 * (members - 1) / members * count * strategy.gradient_bytes
    hops = all_reduce_hops(members)
    is_compressed = strategy.gradient_bytes == HALF_PRECISION
    return Transfer(what, sent, members, stride, hops, is_hidden, is_gradient=True, is_compressed=is_compressed)


def all_reduce_hops(members: int) -> int:
    """Waits of a small all-reduce, which libraries do along a tree: up and down."""
    return 2 * math.ceil(math.log2(members))


def transfer_seconds(transfer: Transfer, links: Links, processes: int) -> float:
    """How long a transfer takes."""
    link = _pick_link(transfer, links, processes)
    return transfer.hops * link.latency + transfer.sent / link.bytes_per_second


def _pick_link(transfer: Transfer, links: Links, processes: int) -> Link:
    """What a transfer crosses, at the speed that it has there.

    A ring through several machines crosses each machine's link once, whatever the number of its processes there; groups
    that lie side by side share the link.
    """
    between, inside = links.between, links.inside
    if transfer.is_compressed:
        between, inside = links.between_compressed or between, links.inside_compressed or inside
    block = transfer.members * transfer.stride
    if processes <= links.per_machine or links.per_machine % block == 0:  # each group lies within a machine
        return inside
    speed = between.bytes_per_second / min(transfer.stride, links.per_machine)
    if links.per_machine > 1:
        speed = min(speed, inside.bytes_per_second)
    return replace(between, bytes_per_second=speed)


def predict(
    network: NetworkSize,
    strategy: Strategy,
    processes: int,
    images: int,
    compute: Compute,
    links: Links,
    activation_bytes: ByteSize = 2,
) -> Prediction:
    """A step under a strategy that is not refused.

    Args:
        network: which.
        strategy: how it is spread.
        processes: in all.
        images: per process and step.
        compute: speed of one process alone.
        links: what joins the processes.
        activation_bytes: 2 under bf16 and fp16, 4 under fp32.
    """
    transfers = list_transfers(network, strategy, processes, images)
    share = count_held(network, strategy, processes) / network.num_parameters
    seconds = share * compute.seconds_per_update + images * compute.seconds_per_image
    spent = [(one, transfer_seconds(one, links, processes)) for one in transfers]
    hidden = sum(time for one, time in spent if one.is_hidden)
    open_ = sum(time for one, time in spent if not one.is_hidden)
    cover = network.conv_backward_share * images * compute.seconds_per_image
    computed = sum(
        min(time, one.sent * _pick_link(one, links, processes).computed_seconds_per_byte)
        for one, time in spent
        if one.is_hidden
    )
    return Prediction(
        strategy=strategy,
        processes=processes,
        images=processes * images,
        compute_seconds=seconds,
        fastest_seconds=seconds + open_ + max(computed, hidden - cover),
        slowest_seconds=seconds + open_ + hidden,
        bytes_sent=round(sum(transfer.sent for transfer in transfers)),
        memory_bytes=_count_memory(network, strategy, processes, images, activation_bytes),
    )


def count_held(network: NetworkSize, strategy: Strategy, processes: int) -> int:
    """Parameters that one process holds."""
    if strategy.name == "towers":
        return (network.num_parameters + network.num_classes) // NUM_TOWERS  # both hold fc8's bias
    if strategy.name == "hybrid":
        sharded = sum(network.parameters[name] for name in CUT_LAYERS)
        return network.num_parameters - sharded + sharded // (strategy.shards or processes)
    return network.num_parameters


def _count_memory(
    network: NetworkSize, strategy: Strategy, processes: int, images: int, activation_bytes: ByteSize
) -> int:
    held = count_held(network, strategy, processes)
    copy = HALF_PRECISION if activation_bytes == HALF_PRECISION else 0
    on_the_way = HALF_PRECISION if strategy.gradient_bytes == HALF_PRECISION and processes > 1 else 0
    gathered = 0  # numbers that a process holds in addition, because others made them
    if strategy.name == "towers":
        gathered = images * sum(network.inputs[name] for name in meeting_points(network))
    if strategy.name == "hybrid":
        others = (strategy.shards or processes) - 1
        gathered = others * images * sum(network.inputs[name] for name in CUT_LAYERS)
    kept = activation_bytes * (images * network.kept + gathered) + INDEX_BYTES * images * network.pooled
    return held * (STATE_BYTES + copy + on_the_way) + kept


def choose_shards(
    network: NetworkSize, strategy: Strategy, processes: int, images: int, compute: Compute, links: Links
) -> Strategy:
    """Hybrid over all processes, or over those of each machine: the faster one; any other strategy as it is."""
    if strategy.name != "hybrid" or strategy.shards is not None or processes <= links.per_machine:
        return strategy
    choices = [strategy, replace(strategy, shards=links.per_machine)] if links.per_machine > 1 else [strategy]
    possible = [choice for choice in choices if refuse(network, choice, processes) is None]
    if not possible:
        return strategy
    return min(possible, key=lambda choice: predict(network, choice, processes, images, compute, links).step_seconds)


WORTH_IT = 1.05  # a strategy that is stranger than ddp fp32 must be this much faster to be recommended


def recommend(predictions: Sequence[Prediction]) -> tuple[Prediction, str]:
    """The strategy to use among those of one process count, and the reason.

    Args:
        predictions: of one process count; the first is the plainest, which wins where nothing is clearly faster.
    """
    plain = predictions[0]
    best = max(predictions, key=lambda prediction: prediction.images_per_second)
    if plain.processes == 1:
        return plain, "one process sends nothing"
    waiting = plain.step_seconds - plain.compute_seconds
    state = (
        f"{plain.strategy} sends {plain.bytes_sent / 1e6:,.1f} MB a step and waits {1e3 * waiting:,.1f} ms for it "
        f"beside {1e3 * plain.compute_seconds:,.1f} ms of computing"
    )
    gain = best.images_per_second / plain.images_per_second
    if gain < WORTH_IT:
        return plain, f"{state}; nothing else is {WORTH_IT - 1:.0%} faster"
    sends = f"{best.strategy} sends {best.bytes_sent / 1e6:,.1f} MB and makes {gain:.1f} times the images"
    return best, f"{state}; {sends}"
