"""How a batch gets to a GPU: in one copy, out of memory that the driver has pinned, in a stream beside the network's.

A copy costs its microseconds however short it is. Out of memory that is not pinned it holds up the host, and in the
network's stream it waits for the network. So the arrays of a batch lie in one buffer of bytes, and the device has views
of its copy of that.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, TypeVar

import torch
from torch import Tensor

from alexnet_dist.data.engines.loader import Batch

logger = logging.getLogger("alexnet_dist")
T = TypeVar("T")

ALIGNMENT = 64  # bytes: where each array may begin; a kernel then loads its widest words


class Form(NamedTuple):
    """What an array in a buffer looks like."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def num_bytes(self) -> int:
        """Without what fills up to the next array."""
        return math.prod(self.shape) * self.dtype.itemsize


class Event(Protocol):
    """A place in a stream, as torch.cuda.Event."""

    def synchronize(self) -> object:
        """Wait until the stream has got there."""


# -- several arrays in one buffer -------------------------------------------------------------------------------------


def forms_of(arrays: Sequence[Tensor]) -> list[Form]:
    """What they look like."""
    return [Form(array.dtype, tuple(array.shape)) for array in arrays]


def count_bytes(forms: Sequence[Form]) -> int:
    """Of a buffer that holds such arrays."""
    return sum(_round_up(form.num_bytes) for form in forms)


def split(buffer: Tensor, forms: Sequence[Form]) -> list[Tensor]:
    """Views of a buffer (bytes,) uint8, on any device: the arrays, one after another."""
    arrays, start = [], 0
    for form in forms:
        arrays.append(buffer[start : start + form.num_bytes].view(form.dtype).view(form.shape))
        start += _round_up(form.num_bytes)
    return arrays


def allocate(forms: Sequence[Form], device: torch.device) -> Tensor:
    """A buffer on the host for such arrays, on their way to a device.

    torch keeps pinned memory for the next that ask, and gives it to no one before the copies out of it are done.
    """
    return torch.empty(count_bytes(forms), dtype=torch.uint8, pin_memory=device.type == "cuda")


def send(arrays: Sequence[Tensor], device: torch.device, buffer: Tensor | None = None) -> list[Tensor]:
    """Arrays of the host on a device, all by one copy that the host does not wait for; on a CPU themselves.

    Args:
        arrays: on the host.
        device: where they go.
        buffer: of `count_bytes`, to pack them in; those that lie at their place in it already stay there.
    """
    if buffer is None and device.type == "cpu":
        return list(arrays)
    forms = forms_of(arrays)
    buffer = allocate(forms, device) if buffer is None else buffer
    for place, array in zip(split(buffer, forms), arrays, strict=True):
        if place.data_ptr() != array.data_ptr():
            place.copy_(array)
    return split(buffer.to(device, non_blocking=True), forms)


def _round_up(num_bytes: int) -> int:
    return -(-num_bytes // ALIGNMENT) * ALIGNMENT


# -- memory that is used in turns -------------------------------------------------------------------------------------


@contextlib.contextmanager
def registered(memory: Tensor, runtime: Any = None) -> Iterator[None]:
    """Memory that others made, such as what processes share, is pinned within this block.

    Where the driver does not take it, copies out of it hold up the host, and that is all.

    Args:
        memory: contiguous, on the host.
        runtime: of CUDA; default: torch's.
    """
    runtime = runtime or torch.cuda.cudart()  # type: ignore[no-untyped-call]
    start, num_bytes = memory.data_ptr(), memory.numel() * memory.element_size()
    code = int(runtime.cudaHostRegister(start, num_bytes, 0))
    if code:
        logger.debug("cudaHostRegister took no %d bytes: error %d", num_bytes, code)
        if torch.cuda.is_available():
            with contextlib.suppress(RuntimeError):  # torch's next check would find this error, and take it for its own
                torch.zeros(1, device="cuda")
    try:
        yield
    finally:
        if not code:
            runtime.cudaHostUnregister(start)


def hold_until_copied(batches: Generator[T], spare: int, mark: Callable[[], Event]) -> Generator[T]:
    """The same batches, each in memory that another is written to once `spare` + 1 more are asked for.

    Whoever takes a batch queues copies out of it. Another is asked for when those of the batch `spare` before it are
    done, and none is under way at the end.

    Args:
        batches: closed at the end.
        spare: batches whose copies may be under way while the next is asked for.
        mark: an event behind all copies that were queued so far.
    """
    under_way: deque[Event] = deque()
    with contextlib.closing(batches):
        try:
            for batch in batches:
                try:
                    yield batch
                finally:
                    under_way.append(mark())
                if len(under_way) > spare:
                    under_way.popleft().synchronize()
        finally:
            for event in under_way:
                event.synchronize()


# -- a stream beside the network's ------------------------------------------------------------------------------------


class SideStream:
    """Work on batches that does not wait for the network's, nor holds up the host.

    Args:
        device: a GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device, priority=-1)  # type: ignore[no-untyped-call]  # before the network's

    def run(self, make: Callable[[], Batch]) -> tuple[Batch, torch.cuda.Event]:
        """What `make` returns, from any thread, and an event behind what it queued."""
        with torch.cuda.stream(self._stream):
            return make(), self.mark()

    def mark(self) -> torch.cuda.Event:
        """An event behind all that was queued."""
        event: torch.cuda.Event = self._stream.record_event()
        return event

    def hand_over(self, batch: Batch, is_made: torch.cuda.Event) -> Batch:
        """The batch to the stream of whoever asks, whose later work waits until it is made."""
        current = torch.cuda.current_stream(self._device)
        current.wait_event(is_made)
        for tensor in (batch.images, batch.labels, batch.mask):
            tensor.record_stream(current)  # its memory is free again once the network has read it
        return batch
