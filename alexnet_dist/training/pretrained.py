"""The weights that a run begins with: where `model.pretrained` finds them, and how they are fitted to the network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from alexnet_dist.data.download import fetch_file
from alexnet_dist.durable import hash_file
from alexnet_dist.errors import CheckpointError
from alexnet_dist.models import AlexNet, named_layers
from alexnet_dist.parallel.partition import name_tensors
from alexnet_dist.training.checkpoint import load_weights
from alexnet_dist.training.model_folder import (
    WEIGHTS,
    ModelCard,
    find_model_folder,
    read_card,
    read_model_weights,
    read_weights_file,
)

TORCHVISION = "torchvision"
# Of AlexNet_Weights.IMAGENET1K_V1. Its name holds the first 8 digits, which is all that torch.hub would compare.
TORCHVISION_SHA256 = "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02"


@dataclass(frozen=True, eq=False)
class Pretrained:
    """Weights to begin with.

    Args:
        name: what `model.pretrained` says.
        weights: by name.
        sha256: of the file that holds them.
        card: what is known of them, where they come from a model folder.
    """

    name: str
    weights: dict[str, Tensor]
    sha256: str
    card: ModelCard | None = None


def read_pretrained(name: str, cache_dir: Path) -> Pretrained:
    """The weights that `model.pretrained` names.

    Args:
        name: a weights file, a model or run folder, or `torchvision`.
        cache_dir: where the file goes that is fetched for `torchvision`.

    Raises:
        CheckpointError: missing, damaged, or not only weights.
        MachineError: torchvision's weights cannot be fetched.
    """
    path = fetch_torchvision_weights(cache_dir) if name == TORCHVISION else Path(name)
    if path.is_file():
        return Pretrained(name, read_weights_file(path), hash_file(path))
    folder = find_model_folder(path)
    return Pretrained(name, read_model_weights(folder), hash_file(folder / WEIGHTS), read_card(folder))


def fetch_torchvision_weights(cache_dir: Path) -> Path:
    """The file of torchvision's ImageNet weights (244 MB), fetched where it is not yet there, its sha256 compared.

    Raises:
        MachineError: no network, or what arrives is another file.
    """
    from torchvision.models import AlexNet_Weights

    url = str(AlexNet_Weights.IMAGENET1K_V1.url)
    path = cache_dir / "weights" / url.rpartition("/")[2]
    fetch_file([url], path, TORCHVISION_SHA256, "fetch it where there is a network, then set --model.pretrained FILE")
    return path


def load_pretrained(model: AlexNet, pretrained: Pretrained, classes: tuple[str, ...]) -> list[str]:
    """Copy weights into a network with fresh ones; a line for each layer that is not taken over as it is.

    A last layer with another number of outputs keeps its fresh weights. The first layer of a gray network takes the sum
    over the channels of a colour network's: on gray pictures, whose channels are equal, both give the same maps.

    Args:
        model: the network, whole.
        pretrained: the weights.
        classes: of the data, in the order of the outputs.

    Raises:
        CheckpointError: other layers differ, or as many outputs stand for other classes.
    """
    weights, notes = dict(pretrained.weights), []
    layers = named_layers(model)
    first = name_tensors(model, layers["conv1"], ("weight",))["weight"]
    last = name_tensors(model, layers["fc8"], ("weight", "bias"))
    if _is_colour_for_gray(model, weights.get(first)):
        weights[first] = weights[first].sum(1, keepdim=True)  # (96, 1, 11, 11)
        notes.append("conv1 reads gray: the sum of its weights for red, green and blue")
    ours, theirs = (_count_outputs(tensors, last) for tensors in (model.state_dict(), weights))
    if theirs not in (None, ours):
        fresh = model.state_dict()
        weights.update({path: fresh[path] for path in last.values()})
        notes.append(f"fc8 is new: {ours} outputs here, {theirs} there")
    elif pretrained.card is not None:
        _check_same_classes(pretrained.card.classes, classes, pretrained.name)
    load_weights(model, weights, pretrained.name)
    return notes


def _is_colour_for_gray(model: AlexNet, weight: Tensor | None) -> bool:
    return model.spec.in_channels == 1 and weight is not None and weight.dim() == 4 and weight.shape[1] == 3


def _count_outputs(weights: dict[str, Tensor], last: dict[str, str]) -> int | None:
    """Outputs of the last layer; None where its tensors are missing or contradict each other."""
    if not all(name in weights and weights[name].dim() for name in last.values()):
        return None
    counts = {weights[name].shape[0] for name in last.values()}
    return counts.pop() if len(counts) == 1 else None


def _check_same_classes(theirs: tuple[str, ...], ours: tuple[str, ...], name: str) -> None:
    for position, (their, our) in enumerate(zip(theirs, ours, strict=False)):
        if their != our:
            raise CheckpointError(
                "the weights were trained for other classes",
                where=name,
                why=f"class {position} is {their!r} there and {our!r} in the data",
                remedy=f"to begin with that last layer all the same, name the {WEIGHTS} of its model folder",
            )
