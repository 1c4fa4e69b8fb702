"""What each strategy sends in a step, and which processes it can have: bytes in closed form, from the network's shapes.

Words: N processes, b images per process and step. Bytes are those that one process sends, as collectives on a ring
send them: 2 (n - 1) / n of a tensor for an all-reduce over n processes, n - 1 times its own part for an all-gather and
for its reverse.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from alexnet_dist.costs.network_size import NetworkSize
from alexnet_dist.parallel.hybrid import CUT_LAYERS
from alexnet_dist.parallel.towers import NUM_TOWERS

StrategyName = Literal["ddp", "towers", "hybrid"]
ByteSize = Literal[2, 4]

HALF_PRECISION = 2  # bytes of a number


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
        stride: distance between neighboring ranks of the group; as many groups lie side by side.
        hops: waits for a neighbor, one after another.
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


def count_held(network: NetworkSize, strategy: Strategy, processes: int) -> int:
    """Parameters that one process holds."""
    if strategy.name == "towers":
        return (network.num_parameters + network.num_classes) // NUM_TOWERS  # both hold fc8's bias
    if strategy.name == "hybrid":
        sharded = sum(network.parameters[name] for name in CUT_LAYERS)
        return network.num_parameters - sharded + sharded // (strategy.shards or processes)
    return network.num_parameters
