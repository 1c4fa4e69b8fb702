"""Names of tensors: those of a network, and those in a file, with prefixes and wrappers of other programs taken off."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any

from torch import Tensor, nn

from alexnet_dist.base.errors import CheckpointError
from alexnet_dist.base.text import name_few

# What DataParallel, DDP, torch.compile, FSDP, activation checkpointing and Fabric put into the path of a parameter.
WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_forward_module")
FEATURES = "features."  # the part of the network that is saved on its own, and then without this


def fit_names(tensors: dict[str, Tensor], wanted: Collection[str], where: str) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors by the network's names, as far as they are the network's, and a line for each change.

    `model.features.module.0.weight` becomes `features.0.weight`. What belongs to another part of a training program
    (`criterion.weight`, `n_averaged`) is left out; what would be a further tensor of a layer of ours stays.

    Args:
        tensors: by the names of the file.
        wanted: names of the network.
        where: file or folder they come from, for the message.

    Raises:
        CheckpointError: two tensors for one name, or two networks.
    """
    plain, notes = _take_off_wrappers(tensors, where)
    prefix = _find_prefix(plain, wanted, where)
    if prefix is None:
        return _fit_bare_features(plain, wanted, where, notes)
    if prefix:
        notes.append(f"names lose the prefix {prefix}")
    parts = {name.partition(".")[0] for name in wanted}
    ours = {name: tensor for name, tensor in plain.items() if name.startswith(prefix)}
    fitted = {name.removeprefix(prefix): tensor for name, tensor in ours.items()}
    fitted = {name: tensor for name, tensor in fitted.items() if name.partition(".")[0] in parts}
    left = [name for name in plain if name not in ours or name.removeprefix(prefix) not in fitted]
    return fitted, [*notes, *_name_left(left)]


def _fit_bare_features(
    tensors: dict[str, Tensor], wanted: Collection[str], where: str, notes: list[str]
) -> tuple[dict[str, Tensor], list[str]]:
    """The tensors of a backbone that was saved as a network of its own: `backbone.0.weight` is `features.0.weight`."""
    bare = [name.removeprefix(FEATURES) for name in wanted if name.startswith(FEATURES)]
    prefix = _find_prefix(tensors, bare, where)
    if prefix is None or not {prefix + name for name in bare} <= tensors.keys():
        first = next(iter(wanted), "")
        why = f"it has {name_some(tensors) or 'no tensors'}, and no {first}"
        remedy = "give weights of an AlexNet, with torchvision's names"
        raise CheckpointError("these are the weights of another network", where=where, why=why, remedy=remedy)
    fitted = {FEATURES + name: tensors[prefix + name] for name in bare}
    left = [
        name for name in tensors if FEATURES + name.removeprefix(prefix) not in fitted or not name.startswith(prefix)
    ]
    lost = [f"names lose the prefix {prefix}"] if prefix else []
    return fitted, [*notes, *lost, f"names gain {FEATURES}", *_name_left(left)]


def _name_left(names: list[str]) -> list[str]:
    return [f"left out: {name_some(names)}"] if names else []


def _take_off_wrappers(tensors: dict[str, Tensor], where: str) -> tuple[dict[str, Tensor], list[str]]:
    plain: dict[str, Tensor] = {}
    found: dict[str, None] = {}
    for name, tensor in tensors.items():
        parts = name.split(".")
        found |= dict.fromkeys(part for part in parts if part in WRAPPERS)
        short = ".".join(part for part in parts if part not in WRAPPERS)
        if short in plain:
            why, remedy = f"{name} and another one are {short}", "keep one of them in the file"
            raise CheckpointError("two tensors for one name", where=where, why=why, remedy=remedy)
        plain[short] = tensor
    return plain, [f"names lose {' and '.join(f'{part}.' for part in found)}"] if found else []


def _find_prefix(names: Collection[str], wanted: Collection[str], where: str) -> str | None:
    """What stands before the network's names; None where there is none of them."""
    counts = Counter(
        name.removesuffix(ours) for name in names for ours in wanted if name == ours or name.endswith(f".{ours}")
    )
    most = max(counts.values(), default=0)
    prefixes = [prefix for prefix, count in counts.items() if count == most]
    averaged = [prefix for prefix in prefixes if "ema" in prefix.replace(".", "_").split("_")]
    if len(prefixes) > 1 and len(averaged) != 1:
        first, second = (prefix or "(no prefix)" for prefix in prefixes[:2])
        remedy = "keep the tensors of one in the file"
        raise CheckpointError("two networks in one file", where=where, why=f"under {first} and {second}", remedy=remedy)
    return averaged[0] if len(prefixes) > 1 else next(iter(prefixes), None)


def name_some(names: Iterable[Any], most: int = 4) -> str:
    """The first few of some names, and how many there are besides."""
    return name_few([str(name)[:40] for name in names], most)


def name_tensors(model: nn.Module, layer: nn.Module, kinds: Iterable[str]) -> dict[str, str]:
    """The network's names of a layer's tensors: {"weight": "features.0.weight"}."""
    path = next(path for path, module in model.named_modules() if module is layer)
    return {kind: f"{path}.{kind}" for kind in kinds}
