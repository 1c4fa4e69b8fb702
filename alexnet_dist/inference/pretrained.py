"""The weights that a run begins with: where `model.pretrained` finds them, and how they are fitted to the network."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from alexnet_dist.base.download import Published, fetch_file
from alexnet_dist.base.durable import hash_file, read_digest
from alexnet_dist.base.errors import CheckpointError
from alexnet_dist.base.text import find_difference
from alexnet_dist.inference.model_folder import (
    WEIGHTS,
    ModelCard,
    find_model_folder,
    read_card,
    read_model_weights,
    weights_file,
)
from alexnet_dist.inference.weights import check_kinds, load_weights
from alexnet_dist.inference.weights_file import read_weights_file
from alexnet_dist.models import VARIANTS, AlexNet, named_layers
from alexnet_dist.models.weights_names import fit_names, name_tensors

TORCHVISION = "torchvision"
WEIGHTS_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".ckpt", ".npz")  # as other programs call them
# Of AlexNet_Weights.IMAGENET1K_V1. Its name holds the first 8 digits, which is all that torch.hub would compare.
TORCHVISION_SHA256 = "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02"
TORCHVISION_MAX_BYTES = 250_000_000


@dataclass(frozen=True, eq=False)
class Pretrained:
    """Weights to begin with.

    Args:
        name: what `model.pretrained` says.
        weights: by name.
        sha256: of the file that holds them.
        card: what is known of them, where they come from a model folder.
        notes: lines on how the file was read.
    """

    name: str
    weights: dict[str, Tensor]
    sha256: str
    card: ModelCard | None = None
    notes: tuple[str, ...] = ()


def read_pretrained(name: str, cache_dir: Path) -> Pretrained:
    """The weights that `model.pretrained` names.

    Args:
        name: a weights file, a model or run folder, a checkpoint, or `torchvision`.
        cache_dir: where the file goes that is fetched for `torchvision`.

    Raises:
        CheckpointError: missing, damaged, or not only weights.
        MachineError: torchvision's weights cannot be fetched.
    """
    path = fetch_torchvision_weights(cache_dir) if name == TORCHVISION else Path(name)
    if path.is_file():
        found = read_weights_file(path)
        sha256 = TORCHVISION_SHA256 if name == TORCHVISION else hash_file(path)  # that one was compared
        return Pretrained(name, found.tensors, sha256, notes=tuple(found.notes))
    try:
        folder = find_model_folder(path)
    except CheckpointError as error:
        files = sorted(file.name for file in path.glob("*") if file.suffix in WEIGHTS_SUFFIXES)
        if files:  # a folder of another program's
            error.set_remedy(f"name the file of weights in it: --model.pretrained {path / files[0]}")
        raise
    weights = read_model_weights(folder)
    sha256 = read_digest(folder, weights_file(folder).name) or hash_file(weights_file(folder))  # if it was compared
    return Pretrained(name, weights, sha256, read_card(folder))


def fetch_torchvision_weights(cache_dir: Path) -> Path:
    """The file of torchvision's ImageNet weights (244 MB), fetched where it is not yet there, its sha256 compared.

    Raises:
        MachineError: no network, or what arrives is another file.
    """
    from torchvision.models import AlexNet_Weights

    url = str(AlexNet_Weights.IMAGENET1K_V1.url)
    path = cache_dir / "weights" / url.rpartition("/")[2]
    published = Published(TORCHVISION_SHA256, TORCHVISION_MAX_BYTES)
    fetch_file([url], path, published, "fetch it where there is a network, then set --model.pretrained FILE")
    return path


def load_pretrained(model: AlexNet, pretrained: Pretrained, classes: tuple[str, ...]) -> list[str]:
    """Copy weights into a network with fresh ones; a line for all that is not taken over as it is.

    Names lose the prefixes of other programs. A last layer with another number of outputs keeps its fresh weights, and
    so do the layers at the end for which there are none: a backbone has no classifier. The first layer of a gray
    network takes the sum over the channels of a color network's: on gray pictures, whose channels are equal, both give
    the same maps.

    Args:
        model: the network, whole.
        pretrained: the weights.
        classes: of the data, in the order of the outputs.

    Raises:
        CheckpointError: other layers differ, weights that are no finite floating-point numbers, or as many outputs that
            stand for other classes.
    """
    fresh, layers = model.state_dict(), _name_layers(model)
    weights, notes = fit_names(pretrained.weights, fresh, pretrained.name)
    check_kinds(weights, pretrained.name)
    notes = [*pretrained.notes, *notes]
    first, last = layers["conv1"]["weight"], layers["fc8"]
    if _is_color_for_gray(fresh[first], weights.get(first)):
        weights[first] = weights[first].sum(1, keepdim=True)  # (96, 1, 11, 11)
        notes.append("conv1 reads gray: the sum of its weights for red, green and blue")
    ours, theirs = (_count_outputs(tensors, last) for tensors in (fresh, weights))
    missing = _find_missing_end(layers, weights)
    if theirs not in (None, ours):
        weights.update({path: fresh[path] for path in last.values()})
        notes.append(f"fc8 is new: {ours} outputs here, {theirs} there")
    elif missing:
        weights.update({path: fresh[path] for layer in missing for path in layers[layer].values()})
        notes.append(f"new, as the file has no weights for them: {', '.join(missing)}")
    elif pretrained.card is not None:
        _check_same_classes(pretrained.card.classes, classes, pretrained.name)
    dtypes = {str(tensor.dtype).removeprefix("torch.") for tensor in weights.values()} - {"float32"}
    notes += [f"{dtype} in the file, float32 here" for dtype in sorted(dtypes)]
    load_weights(model, weights, pretrained.name, _suggest_variant(weights))
    _check_finite(model, pretrained.name)
    return notes


def _name_layers(model: AlexNet) -> dict[str, dict[str, str]]:
    """{layer: {weight or bias: its name in the network}}."""
    return {name: name_tensors(model, layer, ("weight", "bias")) for name, layer in named_layers(model).items()}


def _is_color_for_gray(ours: Tensor, theirs: Tensor | None) -> bool:
    return ours.shape[1] == 1 and theirs is not None and theirs.shape == (ours.shape[0], 3, *ours.shape[2:])


def _find_missing_end(layers: dict[str, dict[str, str]], weights: dict[str, Tensor]) -> list[str]:
    """The layers at the network's end without any tensor; none where a convolution is among them."""
    names = list(layers)
    while names and not any(path in weights for path in layers[names[-1]].values()):
        names.pop()
    return list(layers)[len(names) :] if "conv5" in names else []


def _suggest_variant(weights: dict[str, Tensor]) -> str:
    """What to do about weights of another shape, where their convolutions are those of one of our networks."""
    shapes = {name: tensor.shape for name, tensor in weights.items() if name.startswith("features.")}
    for name, spec in VARIANTS.items():
        with torch.device("meta"):
            theirs = AlexNet(spec).features.state_dict(prefix="features.")
        if shapes == {path: tensor.shape for path, tensor in theirs.items()}:
            return f"they are of --model.variant {name}; use the image size and widths they were trained with, too"
    return ""


def _check_finite(model: AlexNet, where: str) -> None:
    for name, tensor in model.state_dict().items():
        if not torch.isfinite(tensor).all():
            why = f"{name} holds NaN or infinity"
            raise CheckpointError("these weights cannot be used", where=where, why=why, remedy="take an earlier file")


def _count_outputs(weights: dict[str, Tensor], last: dict[str, str]) -> int | None:
    """Outputs of the last layer; None where its tensors are missing or contradict each other."""
    if not all(name in weights and weights[name].dim() for name in last.values()):
        return None
    counts = {weights[name].shape[0] for name in last.values()}
    return counts.pop() if len(counts) == 1 else None


def _check_same_classes(theirs: tuple[str, ...], ours: tuple[str, ...], name: str) -> None:
    """A network may have outputs without a class, so that a list of classes may end before the other one."""
    place, their, our = find_difference(theirs, ours) or (0, None, None)
    if their is not None and our is not None:
        raise CheckpointError(
            "the weights were trained for other classes",
            where=name,
            why=f"class {place} is {their!r} there and {our!r} in the data",
            remedy=f"to begin with that last layer all the same, name the {WEIGHTS} of its model folder",
        )
