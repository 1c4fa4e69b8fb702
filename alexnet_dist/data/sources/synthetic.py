"""Pictures that need no files: a pattern that tells the class, under noise that tells the sample.

Only integers are used, and the raw words of a counter-based generator, so every machine draws the same bytes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from alexnet_dist.data.decode import Pixels
from alexnet_dist.data.index import SampleIndex, index_pixels
from alexnet_dist.data.sources.source import Source, SourceOptions, check_part, find_no_root

VAL_PART = 8  # one validation image for so many training images
SEED_OFFSETS = {"train": 0, "val": 1, "test": 2}
_NOISE_MASK = 0x3F3F3F3F3F3F3F3F  # each byte of a word: 0..63
_WAVE_HEIGHT = 96  # two waves and the noise add up to at most 63 + 2 * 96 = 255
_LEAST_WAVE_HEIGHT = 24  # a class must not vanish in the noise
_TURN = 1 << 16  # one period of a wave, in steps of its phase
_LARGEST_FREQUENCY = 12  # periods across the picture; more would not survive a resize
_PATTERN_DOMAIN, _NOISE_DOMAIN = 1, 2
_WORD = 2**64


@dataclass(frozen=True)
class SyntheticPixels:
    """Draws the picture of a sample from (seed, sample number) and of its class from the class number.

    The pattern does not depend on the seed: a network that has learned one synthetic set knows another one.
    """

    seed: int
    num_classes: int
    width: int
    height: int

    def name_sample(self, number: int) -> str:
        """The path that stands for a sample; `load` finds the number in it."""
        return f"{self.name_class(number % self.num_classes)}/{number:08d}"

    def name_class(self, label: int) -> str:
        """Class names sort like their numbers."""
        digits = max(3, len(str(self.num_classes - 1)))
        return f"class-{label:0{digits}d}"

    def load(self, path: str) -> Pixels:
        """uint8 (H, W, 3) of the sample with this path."""
        number = int(path.rpartition("/")[2])
        row = self.width * 3
        words = _draw_words(_NOISE_DOMAIN, self.seed, number, 2 - (-self.height * row // 8))
        noise = (words[2:] & np.uint64(_NOISE_MASK)).astype("<u8", copy=False).view(np.uint8)
        pixels: Pixels = noise[: self.height * row].reshape(self.height, row)  # (H, W * 3)
        vertical, horizontal = _choose_waves(number % self.num_classes)
        pixels += _draw_wave(self.height, vertical, int(words[0]))[:, :1]  # (H, 1): gray
        pixels += _draw_wave(self.width, horizontal, int(words[1])).reshape(1, row)  # (1, W * 3)
        return pixels.reshape(self.height, self.width, 3)


@dataclass(frozen=True)
class _Wave:
    frequency: int  # periods across the picture, in 1/256
    amplitudes: tuple[int, int, int]  # of red, green and blue, 24..96


@lru_cache(maxsize=4096)
def _choose_waves(label: int) -> tuple[_Wave, _Wave]:
    """The vertical wave of a class, which is gray, and the horizontal one, which has a color."""
    words = [int(word) for word in _draw_words(_PATTERN_DOMAIN, label, 0, 6)]
    frequencies = [256 + word % (_LARGEST_FREQUENCY * 256) for word in words[:2]]
    gray, red, green, blue = (_LEAST_WAVE_HEIGHT + word % (_WAVE_HEIGHT + 1 - _LEAST_WAVE_HEIGHT) for word in words[2:])
    return _Wave(frequencies[0], (gray, gray, gray)), _Wave(frequencies[1], (red, green, blue))


def _draw_wave(length: int, wave: _Wave, phase: int) -> Pixels:
    """Triangle wave, uint8 (length, 3), that starts at `phase`."""
    step = wave.frequency * _TURN // (256 * length)
    turns = (np.arange(length, dtype=np.int64) * step + phase % _TURN) % _TURN  # (length,)
    triangle = np.abs(turns - _TURN // 2)  # (length,), 0..TURN/2
    wave_of_channel: Pixels = (triangle[:, None] * np.array(wave.amplitudes) // (_TURN // 2)).astype(np.uint8)
    return wave_of_channel


def _draw_words(domain: int, key: int, number: int, count: int) -> npt.NDArray[np.uint64]:
    """`count` words of 64 random bits that depend on nothing but the three numbers."""
    generator = np.random.Philox(
        key=np.array([key % _WORD, number % _WORD], dtype=np.uint64), counter=[0, 0, 0, domain]
    )
    return generator.random_raw(count)


def synthetic_index(num_images: int, num_classes: int, size: tuple[int, int], seed: int) -> SampleIndex:
    """Samples without files: image i has class i modulo `num_classes`, and pixels drawn from (seed, i).

    The pattern of a class is the same for every seed, so sets of two seeds can train and validate.

    Args:
        num_images: how many.
        num_classes: named `class-000`, `class-001`, ...
        size: (width, height) in pixels.
        seed: of the noise and of where the pattern starts.
    """
    synthetic = SyntheticPixels(seed=seed, num_classes=num_classes, width=size[0], height=size[1])
    return index_pixels(
        synthetic,
        paths=[*map(synthetic.name_sample, range(num_images))],
        labels=np.arange(num_images, dtype=np.int64) % num_classes,
        sizes=size,
        classes=[*map(synthetic.name_class, range(num_classes))],
    )


def _list_split(options: SourceOptions, key: str, classes: tuple[str, ...] | None) -> SampleIndex:
    """Sets of neighboring seeds; validation and test are an eighth as large as training."""
    if key == "test":
        check_part(options, key, ("test",))
    count = options.synthetic_images if key == "train" else max(1, options.synthetic_images // VAL_PART)
    size = (options.synthetic_size, options.synthetic_size)
    return synthetic_index(count, options.synthetic_classes, size, options.seed + SEED_OFFSETS[key])


def _check(options: SourceOptions) -> None:
    if "test" in options.parts:
        check_part(options, "test", ("test",))


def _count_classes(options: SourceOptions) -> tuple[int | None, str]:
    return options.synthetic_classes, "data.synthetic_classes"


SOURCE = Source(list_split=_list_split, check=_check, find_root=find_no_root, count_classes=_count_classes)
