"""Recorders of whole updates for a CPU: a tape, as strict as a capture on a GPU, and one that only makes calls."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique", "_unique2")


class PlainRecorder:
    """Makes the recorded call anew each time: on the same places, but with all that Python has at that moment."""

    def __init__(self) -> None:
        self.num_recorded = self.num_replayed = 0

    @contextmanager
    def aside(self) -> Iterator[None]:
        yield

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        self.num_recorded += 1
        return self._count(call)

    def _count(self, call: Callable[[], None]) -> Callable[[], None]:
        def replay() -> None:
            self.num_replayed += 1
            call()

        return replay


class TapeRecorder(PlainRecorder):
    """Takes down the operations of a call, and makes them again on the tensors that they had.

    As in a CUDA graph, a number that Python gave to an operation stays what it was, and nothing may wait for a value.
    """

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        tape = _Tape()
        with tape:
            call()
        self.num_recorded += 1
        return self._count(tape.play)


class _Tape(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self._calls: list[tuple[Any, Sequence[Any], dict[str, Any], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: Any = None) -> Any:
        if func.overloadpacket.__name__ in WAITS:
            raise RuntimeError(f"{func} waits for the device")
        made = func(*args, **(kwargs or {}))
        self._calls.append((func, args, kwargs or {}, made))
        return made

    def play(self) -> None:
        with torch.no_grad():
            for func, args, kwargs, made in self._calls:
                _play(func, args, kwargs, made)


def _play(func: Any, args: Sequence[Any], kwargs: dict[str, Any], made: Any) -> None:
    if any(result.alias_info is not None and not result.alias_info.is_write for result in func._schema.returns):
        return  # a view lies where it lay
    again = func(*args, **kwargs)
    for place, value in zip(tree_leaves(made), tree_leaves(again), strict=True):
        if isinstance(place, Tensor) and place.data_ptr() != value.data_ptr():
            place.copy_(value)
