"""Weights by name: packed, looked at before they are believed, and copied into a network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from safetensors.torch import save
from torch import Tensor, nn

from alexnet_dist.base.errors import CheckpointError, DivergedError

_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


def check_kinds(tensors: dict[str, Tensor], where: str) -> None:
    """Refuse tensors that torch would take and that mean something else, or whose values are not there.

    Args:
        tensors: by name.
        where: file or folder they come from, for the message.

    Raises:
        CheckpointError: complex, whole, boolean, quantized, sparse, nested or meta tensors.
    """
    for name, tensor in tensors.items():
        if tensor.dtype not in _FLOATS or tensor.is_quantized:
            kind = str(tensor.dtype).removeprefix("torch.")
        elif tensor.is_nested or tensor.is_meta:
            kind = "a nested tensor" if tensor.is_nested else "a meta tensor, which has no values"
        elif tensor.layout != torch.strided:
            kind = f"sparse ({str(tensor.layout).removeprefix('torch.')})"
        else:
            continue
        remedy = "save them as dense tensors of float32"
        raise CheckpointError("these weights cannot be used", where=where, why=f"{name} is {kind}", remedy=remedy)


def check_finite(weights: Mapping[str, Tensor], where: str, remedy: str = "lower optimizer.lr") -> None:
    """Refuse weights that no one could use: an update may break them although its loss was finite.

    Args:
        weights: by name.
        where, remedy: for the message.

    Raises:
        DivergedError: one is not finite.
    """
    broken = [name for name, tensor in weights.items() if not tensor.isfinite().all()]
    if broken:
        raise DivergedError("a weight is not finite", where=f"{where}, {broken[0]}", remedy=remedy)


def pack_tensors(tensors: dict[str, Tensor]) -> bytes:
    """Tensors as the bytes of a .safetensors file: equal values give equal bytes, whatever device or layout."""
    return bytes(save({name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}))


def load_weights(model: nn.Module, tensors: dict[str, Tensor], where: str, remedy: str = "") -> None:
    """Copy weights into a network of the same shape.

    Args:
        model: the network.
        tensors: by the network's own names.
        where: file or folder they come from, for the message.
        remedy: for weights of another shape, where more is known than that.

    Raises:
        CheckpointError: a name or a shape differs, or they are no plain floating-point numbers.
    """
    check_kinds(tensors, where)
    check_shapes(model, {name: tuple(tensor.shape) for name, tensor in tensors.items()}, where, remedy)
    model.load_state_dict(tensors)


def check_shapes(model: nn.Module, found: Mapping[str, tuple[int, ...]], where: str, remedy: str = "") -> None:
    """Refuse weights of another network; see `load_weights`.

    Args:
        model: the network; its values are not looked at, so it may lie on the meta device.
        found: shapes by the network's own names.
        where, remedy: for the message.

    Raises:
        CheckpointError: a name or a shape differs.
    """
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    for name in [*wanted, *found]:
        if wanted.get(name) != found.get(name):
            here, there = (str(shapes.get(name, "missing")) for shapes in (wanted, found))
            raise CheckpointError(
                "the weights do not fit the network",
                where=where,
                why=f"{name} is {there} there and {here} here",
                remedy=remedy or "use the variant, image size and number of classes they were trained with",
            )
