"""What one start of a run is made of, before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor

from alexnet_dist.assembly.graph import GraphChoice
from alexnet_dist.assembly.kernels import Kernels
from alexnet_dist.assembly.loaders import BatchSizes, Feed
from alexnet_dist.assembly.sets import Splits, find_root
from alexnet_dist.base.signals import StopRequest
from alexnet_dist.data.index import BadFile
from alexnet_dist.models import AlexNet, AlexNetSpec
from alexnet_dist.parallel.partition import Partition
from alexnet_dist.parallel.runtime import Runtime
from alexnet_dist.runs.changed_images import describe_images, find_newest
from alexnet_dist.runs.image_list import Changes
from alexnet_dist.runs.resume import Choice, Resumption
from alexnet_dist.settings.schema import Config
from alexnet_dist.tracking.trackers import Trackers


@dataclass(frozen=True, eq=False)
class Start:
    """One start of a run.

    Args:
        config: the settings.
        folder: the run folder, which the main process holds.
        runtime: this process among the others.
        stop: the signals this process received.
        resumption: how it goes on with the run in the folder.
        splits: the images.
        changes: what differs between them and those that the run began with.
        sizes: the arithmetic of a batch.
        spec: the whole network.
        feed: what loaders are made from.
        engine: what carries the plans out.
        kernels: what the network is computed with.
        graph: whether a whole update is captured as a CUDA graph.
    """

    config: Config
    folder: Path
    runtime: Runtime
    stop: StopRequest
    resumption: Resumption
    splits: Splits
    changes: Changes
    sizes: BatchSizes
    spec: AlexNetSpec
    feed: Feed
    engine: Choice
    kernels: Kernels
    graph: GraphChoice

    @property
    def steps_per_epoch(self) -> int:
        """Updates in an epoch."""
        return self.feed.plans["train"].steps_per_epoch

    @property
    def total_steps(self) -> int:
        """Updates of the run."""
        return self.config.train.max_steps or self.steps_per_epoch * (self.config.train.epochs or 1)

    @cached_property
    def root(self) -> Path:
        """What the paths of images are told relative to."""
        return find_root(self.config.data)

    @cached_property
    def bad_files(self) -> set[BadFile]:
        """The images that are left out."""
        return self.feed.find_bad_files()

    @cached_property
    def data(self) -> dict[str, Any]:
        """What run.json says of the images: fingerprint, counts, and when the newest was changed."""
        num_bad_files, newest_ns = len(self.bad_files), find_newest(self.splits)
        return {**describe_images(self.splits), "num_bad_files": num_bad_files, "newest_ns": newest_ns}

    @property
    def has_same_images(self) -> bool:
        """Whether the images are those that the run began with."""
        return bool(self.resumption.images.get("fingerprint") == self.splits.fingerprint)


@dataclass(frozen=True, eq=False)
class End:
    """What a start of a run came to.

    Args:
        start: what it was made of.
        summary: what summary.json holds.
        trackers: mirrors of metrics.jsonl that are still open: somebody finishes them with the summary.
    """

    start: Start
    summary: dict[str, Any]
    trackers: Trackers


@dataclass(frozen=True, eq=False)
class Network:
    """The network of a run, as this process holds it.

    Args:
        model: the whole network, or this process's part of it, on its device.
        partition: how its tensors follow from those of the whole network.
        pretrained: what run.json says of the weights that the run began with; None = drawn from the seed.
        signal: how much of the difference between images reaches each layer; None where it was not measured.
    """

    model: AlexNet
    partition: Partition
    pretrained: dict[str, Any] | None
    signal: dict[str, float] | None

    def find_cut(self) -> set[Tensor]:
        """The parameters that are parts of larger ones."""
        return self.partition.find_cut(self.model)
