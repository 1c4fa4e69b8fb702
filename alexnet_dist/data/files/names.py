"""Many names in a few bytes each: a million Python strings take a hundred bytes apiece, in every process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np
import numpy.typing as npt

_AT_ONCE = 4096  # names that are decoded, or copied, together


class Names(Sequence[str]):
    """N names that are read as any sequence of texts is; one is decoded when it is asked for.

    Args:
        blob: uint8, the names one after another, a zero behind each.
        ends: (N,) int64, where each name's zero is.
    """

    __slots__ = ("blob", "ends")

    def __init__(self, blob: npt.NDArray[np.uint8], ends: npt.NDArray[np.int64]) -> None:
        self.blob, self.ends = blob, ends

    @classmethod
    def of(cls, names: Iterable[str]) -> Names:
        """The names of any sequence; none holds a zero."""
        if isinstance(names, cls):
            return names
        text = "".join(name + "\0" for name in names)
        return cls.joined(np.frombuffer(text.encode("utf-8", "surrogateescape"), np.uint8))

    @classmethod
    def joined(cls, blob: npt.NDArray[np.uint8]) -> Names:
        """The names in bytes, a zero behind each."""
        return cls(blob, np.flatnonzero(blob == 0))

    def __len__(self) -> int:
        return len(self.ends)

    @overload
    def __getitem__(self, key: int) -> str: ...
    @overload
    def __getitem__(self, key: slice) -> tuple[str, ...]: ...
    def __getitem__(self, key: int | slice) -> str | tuple[str, ...]:
        if isinstance(key, slice):
            return tuple(self[position] for position in range(*key.indices(len(self))))
        position = range(len(self))[key]
        start, end = self._bounds(position, position + 1)
        return self.blob[start : end - 1].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for first in range(0, len(self), _AT_ONCE):
            start, end = self._bounds(first, min(first + _AT_ONCE, len(self)))
            yield from self.blob[start:end].tobytes().decode("utf-8", "surrogateescape").split("\0")[:-1]

    def __eq__(self, other: object) -> bool:
        if isinstance(other, Names):
            return np.array_equal(self.blob, other.blob)
        return isinstance(other, (tuple, list)) and len(self) == len(other) and all(map(str.__eq__, self, other))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{len(self):,} names>"  # a million are nothing to show

    def __reduce__(self) -> tuple[Any, ...]:
        return Names, (self.blob, self.ends)

    def take(self, positions: npt.NDArray[np.int64]) -> Names:
        """The names at these positions, in this order."""
        starts = np.concatenate([np.zeros(1, np.int64), self.ends[:-1] + 1])[: len(self)]
        lengths = (self.ends - starts + 1)[positions]
        ends = np.cumsum(lengths)
        blob = np.empty(int(ends[-1]) if len(ends) else 0, np.uint8)
        for first in range(0, len(positions), _AT_ONCE):  # the places of single bytes take eight times their room
            some = slice(first, first + _AT_ONCE)
            new = ends[some] - lengths[some]  # where each begins
            places = np.repeat(starts[positions[some]] - new, lengths[some]) + np.arange(new[0], ends[some][-1])
            blob[new[0] : ends[some][-1]] = self.blob[places]
        return Names(blob, ends - 1)

    def _bounds(self, first: int, stop: int) -> tuple[int, int]:
        """Where the names from `first` to `stop` - 1 lie."""
        return (int(self.ends[first - 1]) + 1 if first else 0), int(self.ends[stop - 1]) + 1
