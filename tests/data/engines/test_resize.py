"""The resize of the engines is torchvision's, to the bit, whoever carries it out."""

from __future__ import annotations

import pytest
import torch
from torchvision.transforms.v2 import functional as transforms

from alexnet_dist.data.engines.resize import resize_planes

SIZES = [(8, 8, 72, 72), (31, 57, 24, 44), (57, 31, 24, 90), (300, 401, 1, 7), (1, 1, 5, 3), (40, 40, 40, 41)]


@pytest.mark.parametrize("capability", ["AVX512", "DEFAULT"])
@pytest.mark.parametrize("num_images", [1, 3])
@pytest.mark.parametrize("channels", [1, 3])
def test_equals_torchvisions(monkeypatch: pytest.MonkeyPatch, channels: int, num_images: int, capability: str) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    generator = torch.Generator().manual_seed(channels + num_images)
    for height, width, new_height, new_width in SIZES:
        pictures = torch.randint(256, (num_images, height, width, channels), dtype=torch.uint8, generator=generator)
        planes = pictures.permute(0, 3, 1, 2)
        expected = transforms.resize(planes, [new_height, new_width], antialias=True)
        found = resize_planes(planes, new_height, new_width)
        assert found.shape == (num_images, channels, new_height, new_width)
        assert torch.equal(found, expected)
        assert found.is_contiguous(memory_format=torch.channels_last)  # no copy is needed to get at the pixels
