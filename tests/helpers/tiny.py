"""A run small enough to be trained, killed and compared a hundred times."""

from __future__ import annotations

import contextlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from alexnet_dist.data.engines.loader import Loader, Normalization
from alexnet_dist.data.plan import Augmentation
from alexnet_dist.data.sources.synthetic import synthetic_index
from alexnet_dist.models import AlexNetSpec, make_spec
from alexnet_dist.parallel.mesh import build_mesh
from alexnet_dist.parallel.runtime import Runtime
from alexnet_dist.settings.reader import build_config
from alexnet_dist.settings.schema import Config
from helpers.loaders import make_loader

TINY_NETWORK = {
    "variant": "paper",
    "image_size": 64,
    "conv_channels": [8, 16, 16, 16, 16],
    "fc_width": 16,
}


def tiny_spec(**overrides: Any) -> AlexNetSpec:
    """The two-tower network with a few thousand parameters."""
    return make_spec(**{**TINY_NETWORK, "num_classes": 3, "init": "torch", **overrides})


def tiny_config(output_dir: Path, **overrides: Any) -> Config:
    """Settings of a run of 20 updates on 40 made-up images, saving every 3 updates.

    Args:
        output_dir: the run folder.
        overrides: further settings, with __ for the dot: train__epochs=2.
    """
    values: dict[str, Any] = {
        "output_dir": str(output_dir),
        "model.init": "torch",
        "data.source": "synthetic",
        "data.synthetic_images": 40,
        "data.synthetic_classes": 3,
        "data.synthetic_size": 72,
        "data.workers": 0,
        "augment.resize": None,
        "augment.lighting": "source2012",
        "optimizer.lr": 0.01,
        "train.epochs": 5,
        "train.global_batch_size": 12,
        "log.every_steps": 2,
        "log.plots": False,  # two seconds a run
        "log.report": False,
        "checkpoint.every_steps": 3,
        **{f"model.{key}": value for key, value in TINY_NETWORK.items()},
        **{key.replace("__", "."): value for key, value in overrides.items()},
    }
    return build_config(values)


def make_runtime() -> Runtime:
    """One process without an Accelerator."""
    return Runtime(
        accelerator=SimpleNamespace(autocast=contextlib.nullcontext, backward=torch.Tensor.backward, scaler=None),
        device=torch.device("cpu"),
        mesh=build_mesh(0, 1),
        processes_here=1,
        precision="fp32",
        precision_reason="test",
        host_group=None,
    )


def tiny_loader(runtime: Runtime, num_images: int, batch_size: int, training: bool) -> Loader:
    """Batches of made-up images that crop, flip and color noise have changed, where `training`."""
    index = synthetic_index(num_images, 3, (72, 72), seed=0)
    recipe = Augmentation(crop_size=64, resize=None, crop="random", horizontal_flip=0.5, lighting="source2012")
    return make_loader(
        index,
        recipe if training else recipe.for_evaluation(),
        global_batch_size=batch_size,
        seed=3,
        shuffle=training,
        normalization=Normalization((120.0,) * 3, (60.0,) * 3),
        shard_id=runtime.dp_rank,
        num_shards=runtime.dp_size,
        device=runtime.device,
    )


def worst_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """The largest norm of a difference over the norm of the tensor."""
    assert ours.keys() == theirs.keys()
    differences = [(ours[name] - theirs[name]).norm() / theirs[name].norm() for name in ours]
    return float(torch.stack([difference.double() for difference in differences]).max())  # NaN wins
