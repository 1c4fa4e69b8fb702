"""Bytes that one process sends for an update: in closed form, and counted.

K processes hold one network (2 towers, or the shards of hybrid), b images of each. F, W: inputs of fc6, outputs of fc6
and of fc7. An all-reduce of S bytes over N processes sends 2 (N - 1) / N S from each, by a ring.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from alexnet_dist.models import AlexNetSpec, feature_size
from alexnet_dist.models.summary import summarise
from alexnet_dist.parallel.hybrid import CUT_LAYERS

HALF_BYTES, FLOAT_BYTES = 2, 4


@dataclass(frozen=True)
class Traffic:
    """Bytes that one process sends for an update.

    Args:
        activations: what crosses within a network, forward and backward.
        gradients: what is averaged over the replicas.
    """

    activations: float
    gradients: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.activations + self.gradients


def predict_traffic(
    spec: AlexNetSpec,
    strategy: str,
    world_size: int,
    micro_batch_size: int,
    *,
    shard_size: int | None = None,
    activation_bytes: int = FLOAT_BYTES,
    gradient_bytes: int = FLOAT_BYTES,
) -> Traffic:
    """What an update of one forward sends.

    Args:
        spec: the network.
        strategy: ddp, towers or hybrid.
        world_size: processes.
        micro_batch_size: images per replica.
        shard_size: processes over which hybrid spreads fc6 and fc7; None = all.
        activation_bytes: of one number that crosses within a network.
        gradient_bytes: of one number of a gradient.
    """
    num_parts = {"ddp": 1, "towers": 2, "hybrid": shard_size or world_size}[strategy]
    values = {"ddp": 0.0, "towers": _cross_towers(spec), "hybrid": _cross_shards(spec, num_parts)}[strategy]
    parameters = {row.name: row.parameters for row in summarise(spec)}
    whole, replicas = float(sum(parameters.values())), world_size // num_parts
    if strategy == "towers":  # all is cut but fc8's bias
        gradients = _ring(whole / 2 + spec.num_classes / 2, replicas)
    elif strategy == "hybrid":
        cut = sum(parameters[name] for name in CUT_LAYERS)
        gradients = _ring(whole - cut, world_size) + _ring(cut / num_parts, replicas)
    else:
        gradients = _ring(whole, world_size)
    return Traffic(values * micro_batch_size * activation_bytes, gradients * gradient_bytes)


def count_gradient_bytes(forward: nn.Module) -> float:
    """What averaging the gradients sends, from the buckets that DDP has filled; 0 for one replica."""
    total = 0.0
    while isinstance(forward, DistributedDataParallel):
        facts = forward._get_ddp_logging_data()  # type: ignore[no-untyped-call]
        filled = sum(int(size) for size in (facts.get("rebuilt_bucket_sizes") or facts["bucket_sizes"]).split(","))
        narrow = "compress" in facts.get("comm_hook", "")
        total += _ring(filled, facts["world_size"]) / (FLOAT_BYTES // HALF_BYTES if narrow else 1)
        forward = forward.module
    return total


def _ring(size: float, num_processes: int) -> float:
    return 2 * (num_processes - 1) / num_processes * size


def _cross_towers(spec: AlexNetSpec) -> float:
    """Numbers per image: the inputs of shared layers there and their gradients back, and the logits there."""
    shapes = {row.name: row.output_shape for row in summarise(spec)}
    channels, height, width = shapes["pool2"]
    both_ways = channels * height * width / 2 if spec.conv_groups[2] == 1 else 0
    if spec.fc_groups == 1:
        both_ways += _count_features(spec) / 2 + spec.fc_width / 2
    return 2 * both_ways + spec.num_classes


def _cross_shards(spec: AlexNetSpec, num_shards: int) -> float:
    """Numbers per image of a process: its features and fc6's outputs to all others, fc7's back to their process."""
    features, width = _count_features(spec), spec.fc_width
    return 2 * (num_shards - 1) * (features + width + width / num_shards)


def _count_features(spec: AlexNetSpec) -> int:
    return spec.conv_channels[-1] * feature_size(spec) ** 2
