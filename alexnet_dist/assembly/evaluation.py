"""From a trained network and a set to what an evaluation goes through: the network, a plan, a loader, a gate."""

from __future__ import annotations

import logging
from dataclasses import replace
from pathlib import Path

import numpy as np

from alexnet_dist.assembly.caches import build_caches
from alexnet_dist.assembly.loaders import build_loader, build_plan, place_model
from alexnet_dist.assembly.sets import find_root
from alexnet_dist.data.engines.choose import choose_evaluation_engine
from alexnet_dist.data.engines.loader import Loader
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.plan import Augmentation, Plan, resize_shapes
from alexnet_dist.inference.model_folder import ModelCard, read_model_weights
from alexnet_dist.inference.weights import load_weights
from alexnet_dist.models import AlexNet
from alexnet_dist.parallel.runtime import Runtime
from alexnet_dist.settings.schema import Config, DataConfig
from alexnet_dist.training.gate import BatchGate

logger = logging.getLogger("alexnet_dist")


def load_network(folder: Path, card: ModelCard, runtime: Runtime, channels_last: bool) -> AlexNet:
    """The network of a model folder, on the device.

    Raises:
        CheckpointError: its weights are damaged, or of another network.
    """
    model = AlexNet(card.spec)
    load_weights(model, read_model_weights(folder), str(folder))
    place_model(model, runtime, channels_last)
    return model


def plan_evaluation(
    data: DataConfig, recipe: Augmentation, index: SampleIndex, batch_size: int, num_replicas: int, ten_crop: bool
) -> Plan:
    """The batches of one pass over a set in its own order.

    Args:
        data: the settings.
        recipe: resize and crop that the model was trained for.
        index: the set.
        batch_size: crops of images per process and forward, rounded up to whole images.
        num_replicas: processes that share a batch.
        ten_crop: ten views of an image instead of the center crop.

    Raises:
        DataError: an image smaller than the crop, unless bad files are skipped.
    """
    recipe = replace(recipe, views=10 if ten_crop else 1)
    images_per_replica = -(-batch_size // recipe.views)
    plan = build_plan(data, index, recipe, images_per_replica * num_replicas, seed=0, shuffle=False)
    sides = resize_shapes(index.sizes.astype(np.int64), recipe.resize).min(axis=1)  # (N,) of the central squares
    num_narrow = int((sides == recipe.crop_size).sum())
    if ten_crop and num_narrow:
        logger.warning(
            "--ten_crop: augment.resize %s leaves no margin around the %d pixels of the crop in %d of %d images: their "
            "five windows are the same",
            "null" if recipe.resize is None else recipe.resize,
            recipe.crop_size,
            num_narrow,
            len(index),
        )
    return plan


def open_set(
    runtime: Runtime, config: Config, card: ModelCard, index: SampleIndex, plan: Plan, is_engine_given: bool
) -> tuple[Loader, BatchGate]:
    """A set's batches, and what they pass; a cache is built where one is asked for.

    Args:
        runtime: this process among the others.
        config: the settings.
        card: of the model.
        index: the set.
        plan: its batches, see `plan_evaluation`.
        is_engine_given: `data.engine` is the user's, not that of the run which made the model.

    Raises:
        MachineError: an engine was asked for that cannot run here.
        InterruptedRunError: a signal came while the cache was built.
    """
    engine = choose_evaluation_engine(config.data.engine, is_given=is_engine_given)
    loader = build_loader(runtime, config.data, index, plan, card.normalization, config.channels_last, engine)
    gate = BatchGate(runtime, config.data.on_bad_file == "skip", root=find_root(config.data))
    gate.stop.listen()
    if engine == "cache":
        build_caches(runtime, config.data, [loader], gate.stop)
    return loader, gate
