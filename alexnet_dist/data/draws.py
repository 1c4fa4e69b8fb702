"""Random numbers from counters: each is a hash of (seed, purpose, epoch, sample), and no generator keeps a state."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

# One number per purpose keeps the draws for order, crop, flips, lighting and so on independent of each other. A new
# purpose gets the next number: the draws of the others, and with them the batches of every run, stay as they are.
ORDER, CROP, FLIP, NOISE, JITTER, ERASE, BLOCKS = range(7)


@dataclass(frozen=True, eq=False)
class Blocks:
    """Images that are read together: those of a file of many.

    Args:
        numbers: (N,) the block of each image, from 0.
        window: blocks whose images are mixed with each other.
    """

    numbers: npt.NDArray[np.integer]
    window: int


@lru_cache(maxsize=4)
def shuffle_order(seed: int, epoch: int, num_images: int) -> IntArray:
    """A permutation of the images. Sorting raw 64-bit draws keeps it equal under every version of numpy."""
    bits = np.random.Philox(key=seed, counter=[0, 0, ORDER, epoch]).random_raw(num_images)
    order = np.argsort(bits, kind="stable")
    order.flags.writeable = False
    return order


@lru_cache(maxsize=4)
def shuffle_blocks(seed: int, epoch: int, blocks: Blocks) -> IntArray:
    """A permutation of the images that reads few blocks at a time.

    The blocks come in a random order. So many of them that fill a window are mixed: their images come in the order that
    `shuffle_order` would give them. The same for every number of processes, and known for any epoch.
    """
    num_blocks = int(blocks.numbers.max(initial=-1)) + 1
    bits = np.random.Philox(key=seed, counter=[0, 0, BLOCKS, epoch]).random_raw(num_blocks)
    windows = np.empty(num_blocks, np.int64)
    windows[np.argsort(bits, kind="stable")] = np.arange(num_blocks) // blocks.window  # of each block
    mixed = shuffle_order(seed, epoch, len(blocks.numbers))
    order = mixed[np.argsort(windows[blocks.numbers[mixed]], kind="stable")]
    order.flags.writeable = False
    return order


def draw_uniforms(seed: int, purpose: int, epoch: int, ids: IntArray, count: int) -> FloatArray:
    """(B, count) numbers in [0, 1), each a hash of (seed, purpose, epoch, id, its position)."""
    with np.errstate(over="ignore"):
        state = _mix(np.uint64(seed) ^ _mix(np.uint64(purpose) + np.uint64(1)))
        state = _mix(_mix(state + np.uint64(epoch)) + ids.astype(np.uint64))  # (B,)
        draws = _mix(state[:, None] + np.arange(1, count + 1, dtype=np.uint64) * _GOLDEN)  # (B, count)
    return (draws >> np.uint64(11)).astype(np.float64) * 2.0**-53


_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def _mix(bits: npt.NDArray[np.uint64] | np.uint64) -> npt.NDArray[np.uint64]:
    """The finalizer of the SplitMix64 generator (Steele, Lea and Flood, 2014): a good hash of 64 bits."""
    bits = (bits ^ (bits >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    bits = (bits ^ (bits >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(bits ^ (bits >> np.uint64(31)))
