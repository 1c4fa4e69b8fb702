"""AlexNet for one device, described by an `AlexNetSpec`.

Shapes: B images, C channels, S pixels a side. Towers are channel groups of this network: a run on two devices cuts it,
and never builds another one. Where a fact is the 2012 program's, it is cuda-convnet's layers-145.cfg and
layer-params-145.cfg.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from alexnet_dist.base.bounds import (
    MAX_CHANNELS,
    MAX_CLASSES,
    MAX_FACTOR,
    MAX_PADDING,
    MAX_SIDE,
    MAX_WIDTH,
    MAX_WINDOW,
    bounded,
    describe_bounds,
    is_within,
)
from alexnet_dist.base.text import shorten
from alexnet_dist.models.grouped_linear import GroupedLinear
from alexnet_dist.models.normalization import LocalResponseNorm, MapResponseNorm
from alexnet_dist.models.pooling import MaxPooling

DropoutPosition = Literal["after_fc", "before_fc"]
Initialization = Literal["source2012", "paper_text", "torch", "kaiming"]

LAYER_NAMES = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")

MAX_WEIGHTS = 2_000_000_000  # 8 GB in float32, and 24 GB with their gradients and momentum
_KERNELS = (11, 5, 3, 3, 3)  # conv1 .. conv5; all but conv1 keep the side of the map
_CONV1_STRIDE = 4
_NORMALIZED = (0, 1)  # positions of conv1 and conv2, which response normalization may follow
_MAP_NORMALIZED = 1  # position of conv2, which the normalization within each map may follow
_POOLED = (0, 1, 4)  # positions of conv1, conv2 and conv5, which max pooling follows


@dataclass(frozen=True)
class AlexNetSpec:
    """What the network is. The defaults are the paper's.

    Raises:
        ValueError: the fields describe no network that could be built.
    """

    num_classes: int = bounded(1000, minimum=1, maximum=MAX_CLASSES)
    """Number of logits."""

    in_channels: int = 3
    """Channels of an image: 3 for color, 1 for gray."""

    image_size: int = bounded(224, minimum=1, maximum=MAX_SIDE)
    """Side of the images in pixels."""

    dropout: float = bounded(0.5, minimum=0.0, below=1.0)
    """Probability that an activation beside fc6 and fc7 is dropped in training, in [0, 1)."""

    conv_channels: tuple[int, ...] = bounded((96, 256, 384, 384, 256), minimum=1, maximum=MAX_CHANNELS)
    """Output channels of conv1 .. conv5, both towers together."""

    conv_groups: tuple[int, ...] = bounded((1, 2, 1, 2, 2), minimum=1, maximum=MAX_CHANNELS)
    """Channel groups of conv1 .. conv5. A layer with 2 stays within its tower; conv3 reads both towers."""

    conv1_padding: int | None = bounded(None, minimum=0, maximum=MAX_PADDING)
    """Pixels of zero around the image. None: 0 where conv1's windows tile the image exactly (227) or where
    `conv1_end_padding` lets them hang over, else 2, so that 224 and 227 both give maps of 55x55."""

    conv1_end_padding: int = bounded(0, minimum=0, maximum=MAX_PADDING)
    """Pixels of zero to the right of and below the image only. 3 lets conv1's last window hang over the image, which is
    how the 2012 program counted its windows: 1 + ceil((image_size - 11) / 4)."""

    relu_after_pool: tuple[bool, ...] = (False, False, False)
    """For conv1, conv2 and conv5: whether the ReLU comes after normalization and pooling instead of before them."""

    fc_width: int = bounded(4096, minimum=1, maximum=MAX_WIDTH)
    """Outputs of fc6 and of fc7."""

    fc_groups: int = bounded(1, minimum=1, maximum=MAX_WIDTH)
    """Groups of the inputs and outputs of fc6 and of fc7. 2 keeps each tower to itself, as in the 2012 experiment
    without communication (layers-150); fc8 always reads both towers."""

    lrn: bool = True
    """Whether local response normalization stands between conv1, and conv2, and their pooling."""

    lrn_groups: int = bounded(2, minimum=1, maximum=MAX_CHANNELS)
    """Towers that normalize on their own; 1 normalizes across all channels, as Caffe does."""

    lrn_size: int = bounded(5, minimum=1, maximum=MAX_WINDOW)
    """Channels in the window of the normalization, odd."""

    lrn_alpha: float = bounded(1e-4, minimum=0.0, maximum=MAX_FACTOR)
    """Weight of the squares in PyTorch's convention: it is divided by `lrn_size`."""

    lrn_beta: float = bounded(0.75, above=0.0, maximum=10.0)
    """Exponent of the normalization."""

    lrn_k: float = bounded(2.0, above=0.0, maximum=MAX_FACTOR)
    """Constant term of the normalization."""

    map_norm: bool = False
    """Whether conv2's maps are normalized once more before their pooling, each over windows of 5x5 pixels of itself.
    The 2012 program has it (`cnorm2`), the paper does not mention it."""

    pool_kernel: int = bounded(3, minimum=1, maximum=MAX_PADDING)
    """Side of the max-pooling windows; larger than the stride, they overlap."""

    pool_stride: int = bounded(2, minimum=1, maximum=MAX_PADDING)
    """Step between max-pooling windows."""

    adaptive_pool: int | None = bounded(None, minimum=1, maximum=MAX_PADDING)
    """Side to which the last maps are averaged before fc6. None: fc6 reads them as they are."""

    dropout_position: DropoutPosition = "after_fc"
    """`after_fc`: after the ReLU of fc6 and of fc7, as in 2012. `before_fc`: before fc6 and fc7, as in torchvision."""

    init: Initialization = "source2012"
    """`source2012`: the 2012 program's normal weights and constant biases. `paper_text`: what the paper says of them,
    standard deviation 0.01 everywhere, which on normalized input does not train. `torch`: PyTorch's distributions.
    `kaiming`: normal weights that keep the signal's power through ReLU (fan in), biases of zero."""

    def __post_init__(self) -> None:
        _check_numbers(self)
        _check_choices(self)
        _check_channels(self)
        _check_image_size(self)


_BOUNDS = {item.name: item.metadata for item in fields(AlexNetSpec) if item.metadata}
_WHOLE = tuple(item.name for item in fields(AlexNetSpec) if "int" in str(item.type))


def _conv_inputs(spec: AlexNetSpec) -> tuple[int, ...]:
    return (spec.in_channels, *spec.conv_channels[:-1])


def _conv1_padding(spec: AlexNetSpec, image_size: int) -> int:
    if spec.conv1_padding is not None:
        return spec.conv1_padding
    tiles = (image_size - _KERNELS[0]) % _CONV1_STRIDE == 0
    return 0 if tiles or spec.conv1_end_padding else 2


def _pool5_side(spec: AlexNetSpec, image_size: int) -> int:
    """Returns the side of the maps after the last pooling; below 1 where a map vanishes on the way."""
    padded = image_size + 2 * _conv1_padding(spec, image_size) + spec.conv1_end_padding
    side = (padded - _KERNELS[0]) // _CONV1_STRIDE + 1
    for _ in _POOLED:
        side = (side - spec.pool_kernel) // spec.pool_stride + 1
    return side


def _check_numbers(spec: AlexNetSpec) -> None:
    for name in _BOUNDS:
        value = getattr(spec, name)
        is_open = value is None and name in ("conv1_padding", "adaptive_pool")
        if not is_open and name not in ("conv_channels", "conv_groups"):
            _check_number(name, value)


def _check_choices(spec: AlexNetSpec) -> None:
    _check_choice("in_channels", spec.in_channels, (1, 3))
    for name in ("lrn", "map_norm"):
        _check_choice(name, getattr(spec, name), (True, False))
    _check_flags("relu_after_pool", spec.relu_after_pool, len(_POOLED))
    _check_choice("dropout_position", spec.dropout_position, get_args(DropoutPosition))
    _check_choice("init", spec.init, get_args(Initialization))
    if spec.lrn_size % 2 == 0:
        raise ValueError(f"lrn_size must be odd, got {spec.lrn_size}")


def _check_number(name: str, value: object, where: str = "") -> None:
    kind = int if name in _WHOLE else (int, float)
    if isinstance(value, bool) or not isinstance(value, kind) or not is_within(value, _BOUNDS[name]):
        what = f"a {'whole' if name in _WHOLE else 'finite'} number {describe_bounds(_BOUNDS[name])}"
        raise ValueError(f"{where}{name} must be {what}, got {shorten(repr(value), 40)}")


def _check_choice(name: str, value: object, choices: tuple[object, ...]) -> None:
    if not any(value == choice and type(value) is type(choice) for choice in choices):  # 1 is not true
        raise ValueError(f"{name} must be one of {', '.join(map(str, choices))}, got {shorten(repr(value), 40)}")


def _check_flags(name: str, values: object, count: int) -> None:
    if not isinstance(values, tuple) or len(values) != count or not all(isinstance(value, bool) for value in values):
        raise ValueError(f"{name} needs {count} times true or false, got {shorten(repr(values), 40)}")


def _check_channels(spec: AlexNetSpec) -> None:
    for name in ("conv_channels", "conv_groups"):
        values = getattr(spec, name)
        if not isinstance(values, tuple) or len(values) != len(_KERNELS):
            raise ValueError(
                f"{name} needs {len(_KERNELS)} numbers, one for each convolution, got {shorten(repr(values), 40)}"
            )
        for value in values:
            _check_number(name, value, where="each of ")
    layers = zip(LAYER_NAMES, _conv_inputs(spec), spec.conv_channels, spec.conv_groups, strict=False)
    for layer, channels_in, channels_out, groups in layers:
        if channels_in % groups or channels_out % groups:
            raise ValueError(f"{layer} cannot split {channels_in} -> {channels_out} channels into {groups} groups")
    for name, size in (("outputs of fc6", spec.fc_width), ("channels of conv5", spec.conv_channels[-1])):
        if size % spec.fc_groups:
            raise ValueError(f"the {size} {name} do not divide into {spec.fc_groups} fc_groups")
    for index in _NORMALIZED:
        channels = spec.conv_channels[index]
        if spec.lrn and channels % spec.lrn_groups:
            layer = LAYER_NAMES[index]
            raise ValueError(f"the {channels} channels of {layer} do not divide into {spec.lrn_groups} lrn_groups")


def _check_image_size(spec: AlexNetSpec) -> None:
    if _pool5_side(spec, spec.image_size) >= 1:
        return
    conv1_side = 1
    for _ in _POOLED:
        conv1_side = (conv1_side - 1) * spec.pool_stride + spec.pool_kernel
    most_padding = max(_conv1_padding(spec, side) for side in range(_CONV1_STRIDE))
    smallest = (conv1_side - 1) * _CONV1_STRIDE + _KERNELS[0] - 2 * most_padding - spec.conv1_end_padding
    while _pool5_side(spec, smallest) < 1:
        smallest += 1
    raise ValueError(f"image_size {spec.image_size} leaves no map after the pooling; the smallest is {smallest}")


def check_size(spec: AlexNetSpec, most: int = MAX_WEIGHTS) -> None:
    """Refuse to build a network whose weights no machine holds; it can still be described and counted.

    Args:
        spec: the network.
        most: weights and biases that it may have.

    Raises:
        ValueError: it has more.
    """
    count = sum(parameter.numel() for parameter in build_on_meta(spec).parameters())
    if count > most:
        raise ValueError(f"the network would have {count:,} weights; it may have {most:,}")


VARIANTS: dict[str, AlexNetSpec] = {
    "paper": AlexNetSpec(),
    "source2012": AlexNetSpec(
        conv1_padding=0,
        conv1_end_padding=3,
        relu_after_pool=(True, False, True),
        map_norm=True,
    ),
    "ungrouped": AlexNetSpec(
        conv_groups=(1, 1, 1, 1, 1),
        lrn=False,
        lrn_groups=1,
        init="torch",
    ),
    "torchvision": AlexNetSpec(
        conv_channels=(64, 192, 384, 256, 256),
        conv_groups=(1, 1, 1, 1, 1),
        conv1_padding=2,
        lrn=False,
        adaptive_pool=6,
        dropout_position="before_fc",
        init="torch",
    ),
}
"""Starting points of `make_spec`.

`paper`: the text's two towers merged, with the 2012 program's initialization. `source2012`: that program's layers-145
field by field; its weights and keys are those of `paper`. `ungrouped`: one column without normalization, as tutorials
have it. `torchvision`: the state-dict keys and the logits of torchvision's alexnet.
"""


def make_spec(variant: str, **overrides: Any) -> AlexNetSpec:
    """Takes a variant and replaces some of its fields; a field given as None keeps the variant's value.

    Args:
        variant: paper, source2012, ungrouped or torchvision.
        overrides: fields of `AlexNetSpec`, which are the settings below `model`: num_classes, image_size in pixels, ...

    Raises:
        ValueError: no such variant, no such field, or a network that cannot be built.
    """
    if variant not in VARIANTS:
        raise ValueError(f"no variant {variant!r}; there are {', '.join(VARIANTS)}")
    given = {name: value for name, value in overrides.items() if value is not None}
    return spec_from_dict(asdict(VARIANTS[variant]) | given)


def spec_to_dict(spec: AlexNetSpec) -> dict[str, Any]:
    """Gives the fields as JSON knows them: tuples become lists."""
    return {name: list(value) if isinstance(value, tuple) else value for name, value in asdict(spec).items()}


def spec_from_dict(values: Mapping[str, Any]) -> AlexNetSpec:
    """Builds a spec from fields as JSON knows them; absent fields take the defaults.

    Raises:
        ValueError: an unknown field, or a network that cannot be built.
    """
    unknown = sorted(set(values) - {field.name for field in fields(AlexNetSpec)})
    if unknown:
        raise ValueError(f"no such field of the network: {', '.join(unknown)}")
    frozen: dict[str, Any] = {
        name: tuple(value) if isinstance(value, list) else value for name, value in values.items()
    }
    return AlexNetSpec(**frozen)


def feature_size(spec: AlexNetSpec) -> int:
    """Returns the side of the maps that fc6 reads: 6 for every variant at 224."""
    return spec.adaptive_pool or _pool5_side(spec, spec.image_size)


class AlexNet(nn.Module):
    """The network on one device.

    Images: (B, in_channels, image_size, image_size). Logits: (B, num_classes).

    `features`, `avgpool` and `classifier` are numbered as torchvision's are. The maps are flattened in NCHW order
    whatever their memory format, so weights do not depend on it. `pad` stands before `features`, and two normalizations
    share a number, so that the keys do not depend on `conv1_end_padding` and `map_norm`.
    """

    def __init__(self, spec: AlexNetSpec) -> None:
        super().__init__()
        self.spec = spec
        end_padding = spec.conv1_end_padding
        self.pad = nn.ZeroPad2d((0, end_padding, 0, end_padding)) if end_padding else nn.Identity()
        self.features = nn.Sequential(*_feature_modules(spec))
        self.avgpool = nn.AdaptiveAvgPool2d(spec.adaptive_pool) if spec.adaptive_pool else nn.Identity()
        self.classifier = nn.Sequential(*_classifier_modules(spec))

    def forward(self, images: Tensor) -> Tensor:
        maps = self.avgpool(self.features(self.pad(images)))  # (B, C5, 6, 6)
        logits: Tensor = self.classifier(torch.flatten(maps, 1))  # (B, num_classes)
        return logits


def build_on_meta(spec: AlexNetSpec) -> AlexNet:
    """The network without a weight in memory: all it knows of them is their shapes.

    Raises:
        ValueError: a layer is so large that its size overflows.
    """
    try:
        with torch.device("meta"):
            return AlexNet(spec)
    except (RuntimeError, TypeError) as error:  # PyTorch's, where a number of elements or bytes leaves 64 bits
        raise ValueError("a layer has more weights than PyTorch can count") from error


def named_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the eight layers with weights, conv1 .. fc8 in order, of an `AlexNet` or of a part with all of them."""
    layers = [module for module in model.modules() if isinstance(module, (nn.Conv2d, nn.Linear))]
    return dict(zip(LAYER_NAMES, layers, strict=True))


def split_behind(model: AlexNet, layer: str) -> tuple[nn.Sequential, nn.Sequential]:
    """Cuts the network behind one of its eight layers, before that layer's ReLU; one part after the other is `forward`.

    The ReLUs work in place: the second part overwrites what it is given, where it begins with one.

    Raises:
        ValueError: no such layer.
    """
    if layer not in LAYER_NAMES:
        raise ValueError(f"no layer {layer!r}; there are {', '.join(LAYER_NAMES)}")
    modules = [model.pad, *model.features, model.avgpool, nn.Flatten(), *model.classifier]
    cut = 1 + modules.index(named_layers(model)[layer])
    return nn.Sequential(*modules[:cut]), nn.Sequential(*modules[cut:])


def _feature_modules(spec: AlexNetSpec) -> list[nn.Module]:
    return [
        module for index, conv in enumerate(_convolutions(spec)) for module in (conv, *_modules_after_conv(spec, index))
    ]


def _modules_after_conv(spec: AlexNetSpec, index: int) -> list[nn.Module]:
    relu = nn.ReLU(inplace=True)
    if index not in _POOLED:
        return [relu]
    rest = [*_normalization(spec, index), MaxPooling(spec.pool_kernel, spec.pool_stride)]
    return [*rest, relu] if spec.relu_after_pool[_POOLED.index(index)] else [relu, *rest]


def _normalization(spec: AlexNetSpec, index: int) -> list[nn.Module]:
    """Returns at most one module: a second one would renumber the layers behind it."""
    norms: list[nn.Module] = []
    if spec.lrn and index in _NORMALIZED:
        norms.append(LocalResponseNorm(spec.lrn_size, spec.lrn_alpha, spec.lrn_beta, spec.lrn_k, spec.lrn_groups))
    if spec.map_norm and index == _MAP_NORMALIZED:
        norms.append(MapResponseNorm())
    return norms if len(norms) < 2 else [nn.Sequential(*norms)]


def _convolutions(spec: AlexNetSpec) -> list[nn.Conv2d]:
    conv1_padding = _conv1_padding(spec, spec.image_size)
    return [
        nn.Conv2d(
            channels_in,
            channels_out,
            kernel,
            stride=1 if index else _CONV1_STRIDE,
            padding=kernel // 2 if index else conv1_padding,
            groups=groups,
        )
        for index, (channels_in, channels_out, kernel, groups) in enumerate(
            zip(_conv_inputs(spec), spec.conv_channels, _KERNELS, spec.conv_groups, strict=True)
        )
    ]


def _classifier_modules(spec: AlexNetSpec) -> list[nn.Module]:
    flat = spec.conv_channels[-1] * feature_size(spec) ** 2
    modules: list[nn.Module] = []
    for width_in in (flat, spec.fc_width):
        block = [_fully_connected(width_in, spec), nn.ReLU(inplace=True)]
        modules += _with_dropout(block, nn.Dropout(spec.dropout), spec.dropout_position)
    return [*modules, nn.Linear(spec.fc_width, spec.num_classes)]


def _fully_connected(width_in: int, spec: AlexNetSpec) -> nn.Linear:
    if spec.fc_groups == 1:
        return nn.Linear(width_in, spec.fc_width)
    return GroupedLinear(width_in, spec.fc_width, spec.fc_groups)


def _with_dropout(block: list[nn.Module], dropout: nn.Dropout, position: DropoutPosition) -> list[nn.Module]:
    return [dropout, *block] if position == "before_fc" else [*block, dropout]
