"""Forms of the convolutions: other ways to compute the same function, of which a machine has a fastest one.

Libraries compute a convolution in groups by kernels of its own kind, and on some GPUs those are many times slower than
for a dense one. So a network in two towers has three forms: `grouped`, each layer as it is; `apart`, each layer in
groups as so many dense convolutions, on towers that lie apart in memory until a layer reads them all; `dense`, a layer
in groups as one dense convolution with zeros between the towers (exact for finite maps, and more arithmetic). conv1,
whose 3 channels leave most of a matrix unit empty, has two: `direct`, and `space_to_depth`, in which 4x4 pixels become
48 channels and 11x11 weights with stride 4 become 3x3 without.

A form changes which modules compute, never the parameters, their names or their shapes: checkpoints know no form.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet_dist.models.alexnet import AlexNet
from alexnet_dist.models.normalization import LocalResponseNorm

GroupsForm = Literal["grouped", "apart", "dense"]
Conv1Form = Literal["direct", "space_to_depth"]
GROUPS_FORMS: tuple[GroupsForm, ...] = get_args(GroupsForm)
CONV1_FORMS: tuple[Conv1Form, ...] = get_args(Conv1Form)


def has_groups(model: AlexNet) -> bool:
    """Whether a convolution of the network, as this process holds it, has more than one group."""
    return any(layer.groups > 1 for layer in model.features.modules() if isinstance(layer, nn.Conv2d))


def take_forms(model: AlexNet, groups: GroupsForm, conv1: Conv1Form) -> None:
    """Let a network compute its convolutions in these forms, in place; parameters, names and hooks stay.

    Args:
        model: the network, or this process's part of it, in the forms that it was built with.
        groups: of the layers in groups. A network without any computes as before.
        conv1: of conv1, where it has one group.
    """
    # A layer of another class keeps its tensors, its hooks and its number, as PyTorch's lazy modules do.
    layers = [module for module in model.features.modules() if isinstance(module, nn.Conv2d)]
    if conv1 == "space_to_depth" and layers[0].groups == 1:
        layers[0].__class__ = SpaceToDepthConv2d
    for layer in layers if groups == "dense" else ():
        if layer.groups > 1:
            layer.__class__ = DenseConv2d
    if groups == "apart" and has_groups(model):
        model.features.__class__ = TowersApart


class DenseConv2d(nn.Conv2d):
    """A convolution in groups, computed as one without: the weights between groups are zeros."""

    def forward(self, maps: Tensor) -> Tensor:
        weight = spread_groups(self.weight, self.groups)
        return F.conv2d(maps, weight, self.bias, self.stride, self.padding, self.dilation)


def spread_groups(weight: Tensor, groups: int) -> Tensor:
    """(O, I / G, k, k) weights of a convolution in G groups as (O, I, k, k) weights of one without."""
    width = weight.shape[1]
    rows = [
        F.pad(part, (0, 0, 0, 0, number * width, (groups - 1 - number) * width))  # (O / G, I, k, k)
        for number, part in enumerate(weight.chunk(groups))
    ]
    made = torch.cat(rows)  # (O, I, k, k)
    is_last = weight.is_contiguous(memory_format=torch.channels_last)
    return made.contiguous(memory_format=torch.channels_last) if is_last else made


class SpaceToDepthConv2d(nn.Conv2d):
    """A convolution with stride s, computed as one without: s x s pixels become channels of one.

    Its windows begin at multiples of s, so each covers whole blocks once its side is filled up with zeros to a multiple
    of s. Input: (B, C, H, W). Output: (B, O, ..., ...), as without.
    """

    def forward(self, images: Tensor) -> Tensor:
        stride, padding = self.stride[0], int(self.padding[0])
        blocks = -(-self.kernel_size[0] // stride)  # of a window's side
        spare = blocks * stride - self.kernel_size[0]
        # Rows and columns that the windows cover: the last ones may end within the image, or hang over it.
        ends = []
        for side in (images.shape[3], images.shape[2]):
            windows = (side + 2 * padding - self.kernel_size[0]) // stride + 1
            ends += [padding, (windows - 1 + blocks) * stride - side - padding]
        deep = _move_to_depth(F.pad(images, ends), stride)  # (B, C s s, h, w)
        weight = _move_to_depth(F.pad(self.weight, (0, spare, 0, spare)), stride)  # (O, C s s, blocks, blocks)
        return F.conv2d(deep, weight, self.bias)


def _move_to_depth(maps: Tensor, side: int) -> Tensor:
    """(B, C, H, W) as (B, C side side, H / side, W / side), in the memory format of the maps, with one copy."""
    height, width = maps.shape[2] // side, maps.shape[3] // side
    cells = torch.unflatten(torch.unflatten(maps, 3, (width, side)), 2, (height, side))  # (B, C, h, side, w, side)
    if maps.is_contiguous(memory_format=torch.channels_last):
        return cells.permute(0, 2, 4, 1, 3, 5).flatten(3).permute(0, 3, 1, 2)
    return cells.permute(0, 1, 3, 5, 2, 4).flatten(1, 3)


class TowersApart(nn.Sequential):
    """The convolutions of a network whose towers lie apart in memory wherever no layer reads more than one.

    Input: (B, C, H, W) images. Output: (B, C5, h, w) maps. A layer's hooks are not called.
    """

    def forward(self, images: Tensor) -> Tensor:
        towers, modules = [images], list(self)
        for place, module in enumerate(modules):
            towers = _compute_apart(module, towers, modules[place + 1 :])
        return join_towers(towers)


def join_towers(towers: Sequence[Tensor]) -> Tensor:
    """(B, C, H, W) maps of all towers."""
    return towers[0] if len(towers) == 1 else torch.cat(list(towers), 1)


def _compute_apart(module: nn.Module, towers: list[Tensor], behind: Sequence[nn.Module]) -> list[Tensor]:
    """What a module makes of the towers' maps; `behind` it stand the others."""
    if isinstance(module, nn.Conv2d):
        return _convolve_apart(module, towers, behind)
    if isinstance(module, LocalResponseNorm) and len(towers) > 1:
        return _normalize_apart(module, towers)
    if isinstance(module, nn.Sequential):  # two normalizations under one number
        for place, part in enumerate(module):
            towers = _compute_apart(part, towers, [*module[place + 1 :], *behind])
        return towers
    return [module(maps) for maps in towers]  # pooling, ReLU and normalization within maps see one channel


def _convolve_apart(layer: nn.Conv2d, towers: list[Tensor], behind: Sequence[nn.Module]) -> list[Tensor]:
    if layer.groups == 1:
        maps = join_towers(towers)
        # A layer that reads all towers writes them apart where one in groups comes next, with a ReLU at most between.
        made = _groups_behind(behind)
        if made == 1:
            return [layer(maps)]
        return [_convolve(layer, maps, part) for part in _parts(layer, made)]
    if len(towers) != layer.groups:
        towers = [_lay_out(part, towers[0]) for part in join_towers(towers).chunk(layer.groups, 1)]
    return [_convolve(layer, maps, part) for maps, part in zip(towers, _parts(layer, layer.groups), strict=True)]


def _groups_behind(modules: Iterable[nn.Module]) -> int:
    following = next((module for module in modules if not isinstance(module, nn.ReLU)), None)
    return following.groups if isinstance(following, nn.Conv2d) else 1


def _parts(layer: nn.Conv2d, count: int) -> list[tuple[Tensor, Tensor]]:
    """Weights and biases of so many equal parts of a layer's outputs."""
    assert layer.bias is not None
    return list(zip(layer.weight.chunk(count), layer.bias.chunk(count), strict=True))


def _convolve(layer: nn.Conv2d, maps: Tensor, part: tuple[Tensor, Tensor]) -> Tensor:
    return F.conv2d(maps, *part, layer.stride, layer.padding, layer.dilation)


def _lay_out(part: Tensor, like: Tensor) -> Tensor:
    is_last = like.is_contiguous(memory_format=torch.channels_last)
    return part.contiguous(memory_format=torch.channels_last if is_last else torch.contiguous_format)


def _normalize_apart(norm: LocalResponseNorm, towers: list[Tensor]) -> list[Tensor]:
    if norm.groups % len(towers):  # windows that reach over the seam
        return [norm(join_towers(towers))]
    return [norm.normalize(maps, norm.groups // len(towers)) for maps in towers]
