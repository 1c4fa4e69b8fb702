"""The network that a command line means: what settings describe, or what a training run has stored."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from alexnet_dist.settings.reader import build_config, load_config
from alexnet_dist.settings.schema import Config

if TYPE_CHECKING:  # torch takes a second and a half to import; a mistyped key should not wait for it
    from alexnet_dist.inference.model_folder import ModelCard
    from alexnet_dist.models import AlexNet, AlexNetSpec

IMAGENET_CLASSES = 1000
OTHERWISE = "set --model.num_classes for others"


@dataclass(frozen=True)
class Network:
    """What is summarized.

    Args:
        variant: where its spec began.
        spec: the network.
        classes_from: where its number of outputs comes from.
    """

    variant: str
    spec: AlexNetSpec
    classes_from: str


def configured_network(config: Config, says_data: bool) -> Network:
    """The network that settings describe; see `read_settings`.

    Raises:
        UsageError: a network that cannot be built.
    """
    num_classes, classes_from = count_classes(config, says_data)
    from alexnet_dist.assembly.network import build_spec

    spec = build_spec(config.model, num_classes, config.parallel.exchange_at)
    return Network(config.model.variant, spec, classes_from)


def read_settings(name: str | None, given: dict[str, Any]) -> tuple[Config, bool]:
    """The settings, and whether they say which data.

    Args:
        name: a configuration file; None without one, which then needs neither data nor a length of training.
        given: settings from the command line, {dotted name: value}.

    Raises:
        UsageError: settings that cannot be meant.
    """
    if name is not None:
        return load_config(name, given), True
    stand_ins = {"data.root": "."} if "train.max_steps" in given else {"data.root": ".", "train.epochs": 1}
    return build_config({**stand_ins, **given}), any(key.startswith("data.") for key in given)


def count_classes(config: Config, says_data: bool) -> tuple[int, str]:
    """The number of outputs, and where it comes from.

    Args:
        config: the settings.
        says_data: whether they say which data; without any, the network is ImageNet's.
    """
    data = config.data
    if config.model.num_classes is not None:
        return config.model.num_classes, "model.num_classes"
    if not says_data:
        return IMAGENET_CLASSES, f"ImageNet's; {OTHERWISE}"
    from alexnet_dist.assembly.sets import make_options
    from alexnet_dist.data.sources.source import open_source

    number, said = open_source(data.source).count_classes(make_options(data))
    return (number, said) if number is not None else (IMAGENET_CLASSES, f"ImageNet's, as {said}; {OTHERWISE}")


def stored_network(path: Path) -> Network:
    """The network of a run folder or model folder, from its config.json alone.

    Raises:
        CheckpointError: no model there, or a damaged one.
    """
    from alexnet_dist.inference.model_folder import find_model_folder, read_card

    folder = find_model_folder(path)
    card = read_card(folder)
    return Network(card.variant, card.spec, str(folder))


def open_network(path: Path, device: str, weights: str = "best") -> tuple[AlexNet, ModelCard]:
    """A trained network in evaluation mode and in float32, and what its folder says of it.

    Args:
        path: a run folder, a model folder or a checkpoint.
        device: auto, cpu or cuda.
        weights: best or last, of a run folder.

    Raises:
        CheckpointError: no model there, or a damaged one.
        MachineError: no such device.
    """
    from alexnet_dist.assembly.evaluation import load_network
    from alexnet_dist.inference.model_folder import find_model_folder, read_fitting_card
    from alexnet_dist.parallel.runtime import start_runtime

    folder = find_model_folder(path, weights)
    card = read_fitting_card(folder)
    return load_network(folder, card, start_runtime(device, "fp32"), channels_last=True).eval(), card
