"""What a step costs under each strategy: seconds, bytes sent and memory, from a network, a computer and its links.

Pure arithmetic, no process and no tensor. A prediction is a band: its fast end hides communication behind the backward
pass as far as the order of the layers and its own need of processors allow, its slow end hides nothing. Published runs
lie between the two where the software is recent and the devices reach each other directly; `published.py` holds that.
The fast end is the one to expect; benchmarks/parallel.py says how far from it timed runs were.

What is sent stands in `transfers.py`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from alexnet_dist.costs.network_size import NetworkSize
from alexnet_dist.costs.transfers import (
    HALF_PRECISION,
    ByteSize,
    Strategy,
    Transfer,
    count_held,
    list_transfers,
    meeting_points,
    refuse,
)
from alexnet_dist.parallel.hybrid import CUT_LAYERS

STATE_BYTES = 12  # of a parameter: fp32 weight, gradient and momentum
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


def transfer_seconds(transfer: Transfer, links: Links, processes: int) -> float:
    """How long a transfer takes."""
    link = _pick_link(transfer, links, processes)
    return transfer.hops * link.latency + transfer.sent / link.bytes_per_second


def _computed_seconds(transfer: Transfer, links: Links, processes: int) -> float:
    """What a transfer takes from the processors that compute: no more than its time."""
    computed = transfer.sent * _pick_link(transfer, links, processes).computed_seconds_per_byte
    return min(computed, transfer_seconds(transfer, links, processes))


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
    hidden = [transfer for transfer in transfers if transfer.is_hidden]
    hidden_seconds = sum(transfer_seconds(transfer, links, processes) for transfer in hidden)
    open_seconds = sum(transfer_seconds(transfer, links, processes) for transfer in transfers if not transfer.is_hidden)
    cover = network.conv_backward_share * images * compute.seconds_per_image
    waited = max(hidden_seconds - cover, sum(_computed_seconds(transfer, links, processes) for transfer in hidden))
    return Prediction(
        strategy=strategy,
        processes=processes,
        images=processes * images,
        compute_seconds=seconds,
        fastest_seconds=seconds + open_seconds + waited,
        slowest_seconds=seconds + open_seconds + hidden_seconds,
        bytes_sent=round(sum(transfer.sent for transfer in transfers)),
        memory_bytes=_count_memory(network, strategy, processes, images, activation_bytes),
    )


def _count_memory(
    network: NetworkSize, strategy: Strategy, processes: int, images: int, activation_bytes: ByteSize
) -> int:
    held = count_held(network, strategy, processes)
    # Autocast keeps such a copy of the parameters during the step.
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
