"""Words for ImageNet's classes, whose folders have the ids of WordNet 3.0 for names (`n02102040`).

imagenet_ids.txt holds the ids of the 1,000 classes of ILSVRC2012, sorted. The words are torchvision's, which come in
the order of the sorted ids. A class is known by its id everywhere: words are only shown.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from importlib import resources

IDS = "imagenet_ids.txt"


def find_words(name: str) -> str | None:
    """The words for a class whose name is an ImageNet id ("English springer"); None for any other."""
    return _read_words()[name] if name in _read_ids() else None


def describe_class(name: str) -> str:
    """A class as it is shown: "English springer (n02102040)", or its name alone."""
    words = find_words(name)
    return name if words is None else f"{words} ({name})"


@functools.cache
def _read_ids() -> frozenset[str]:
    return frozenset((resources.files("alexnet_dist.data") / IDS).read_text(encoding="ascii").split())


@functools.cache
def _read_words() -> Mapping[str, str]:
    """Words by id. Only where one is asked for: torchvision is slow to import."""
    from torchvision.models import AlexNet_Weights

    return dict(zip(sorted(_read_ids()), AlexNet_Weights.IMAGENET1K_V1.meta["categories"], strict=True))
