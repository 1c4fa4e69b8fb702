"""Bytes that one process sends for an update: as the cost model has them in closed form, and counted."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from alexnet_dist.costs.network_size import measure_network
from alexnet_dist.costs.transfers import Strategy, list_transfers
from alexnet_dist.models import AlexNetSpec


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


def predict_traffic(spec: AlexNetSpec, strategy: Strategy, world_size: int, images: int) -> Traffic:
    """What an update of one forward sends.

    Args:
        spec: the network.
        strategy: how it is spread.
        world_size: processes.
        images: per process; two towers share those of two processes.
    """
    transfers = list_transfers(measure_network(spec), strategy, world_size, images)
    gradients = sum(transfer.sent for transfer in transfers if transfer.is_gradient)
    return Traffic(sum(transfer.sent for transfer in transfers) - gradients, gradients)


def count_gradient_bytes(forward: nn.Module) -> float:
    """What averaging the gradients sends, from the buckets that DDP has filled; 0 for one replica.

    By a ring: 2 (N - 1) / N of each bucket over N processes.
    """
    total = 0.0
    while isinstance(forward, DistributedDataParallel):
        facts = forward._get_ddp_logging_data()  # type: ignore[no-untyped-call]
        filled = sum(int(size) for size in (facts.get("rebuilt_bucket_sizes") or facts["bucket_sizes"]).split(","))
        narrow = "compress" in facts.get("comm_hook", "")
        sent = 2 * (facts["world_size"] - 1) / facts["world_size"] * filled
        total += sent / 2 if narrow else sent  # buckets are fp32, compressed ones travel in half precision
        forward = forward.module
    return total
