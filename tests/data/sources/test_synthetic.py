from __future__ import annotations

import hashlib

import numpy as np

from alexnet_dist.data.decode import convert_to_luma
from alexnet_dist.data.sources.synthetic import synthetic_index


def test_synthetic_pixels_depend_on_nothing_but_seed_and_number() -> None:
    index = synthetic_index(40, 3, (20, 12), seed=5)
    assert index.classes == ("class-000", "class-001", "class-002")
    assert index.labels.tolist() == [number % 3 for number in range(40)]
    assert index.sizes[7].tolist() == [20, 12]
    pixels = index.load_pixels(7, 3, 10_000)
    assert pixels.shape == (12, 20, 3)
    assert pixels.dtype == np.uint8
    assert pixels.flags.c_contiguous
    assert pixels.flags.writeable
    np.random.seed(3)
    assert np.array_equal(index.load_pixels(7), pixels)
    assert np.array_equal(synthetic_index(9, 3, (20, 12), seed=5).subset([7]).load_pixels(0), pixels)
    assert np.array_equal(index.load_pixels(7, channels=1), convert_to_luma(pixels))
    assert not np.array_equal(index.load_pixels(10), pixels)
    assert not np.array_equal(synthetic_index(40, 3, (20, 12), seed=6).load_pixels(7), pixels)


def test_synthetic_bytes_are_the_same_everywhere() -> None:
    index = synthetic_index(2000, 1000, (33, 17), seed=-1)
    digest = hashlib.sha256(b"".join(index.load_pixels(number).tobytes() for number in (0, 1, 999, 1999)))
    assert digest.hexdigest()[:16] == "030d3de9e9a06eb2"


def test_synthetic_fingerprint_sees_the_settings() -> None:
    sets = [
        synthetic_index(*settings)
        for settings in ((9, 3, (8, 8), 0), (9, 3, (8, 8), 1), (9, 3, (8, 9), 0), (9, 4, (8, 8), 0), (8, 3, (8, 8), 0))
    ]
    assert len({index.fingerprint() for index in sets}) == 5
    assert synthetic_index(9, 3, (8, 8), 0).fingerprint() == sets[0].fingerprint()


def test_synthetic_classes_can_be_learned_across_seeds() -> None:
    means = []
    for seed in (0, 1):
        index = synthetic_index(100, 10, (32, 32), seed)
        means.append(np.stack([index.load_pixels(number).mean(axis=(0, 1)) for number in range(100)]))
    distances = np.linalg.norm(means[1][:, None] - means[0][None], axis=2)  # (100 of seed 1, 100 of seed 0)
    nearest = distances.argmin(axis=1) % 10
    assert (nearest == np.arange(100) % 10).mean() > 0.9
