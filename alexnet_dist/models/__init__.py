"""AlexNet for one device: the network, its normalization, its initializations."""

from alexnet_dist.models.alexnet import (
    LAYER_NAMES,
    VARIANTS,
    AlexNet,
    AlexNetSpec,
    DropoutPosition,
    Initialization,
    build_on_meta,
    check_size,
    feature_size,
    make_spec,
    named_layers,
    spec_from_dict,
    spec_to_dict,
    split_behind,
)
from alexnet_dist.models.grouped_linear import GroupedLinear
from alexnet_dist.models.init import build_model, initialize
from alexnet_dist.models.normalization import LocalResponseNorm, MapResponseNorm

__all__ = [
    "LAYER_NAMES",
    "VARIANTS",
    "AlexNet",
    "AlexNetSpec",
    "DropoutPosition",
    "GroupedLinear",
    "Initialization",
    "LocalResponseNorm",
    "MapResponseNorm",
    "build_model",
    "build_on_meta",
    "check_size",
    "feature_size",
    "initialize",
    "make_spec",
    "named_layers",
    "spec_from_dict",
    "spec_to_dict",
    "split_behind",
]
