"""How a batch gets to a GPU, on a CPU: packing, memory in turns, and a stand-in for the stream beside the network's."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers import loaders
from torch import Tensor

from alexnet_dist.data.engines import torchvision as torchvision_engine
from alexnet_dist.data.engines.loader import Batch, Loader
from alexnet_dist.data.engines.to_device import (
    ALIGNMENT,
    Form,
    allocate,
    count_bytes,
    forms_of,
    hold_until_copied,
    registered,
    send,
    split,
)
from alexnet_dist.data.engines.torchvision import PixelBatches, iterate_beside
from alexnet_dist.data.plan import Augmentation
from alexnet_dist.data.sources.synthetic import synthetic_index

CPU = torch.device("cpu")
DTYPES = [torch.bool, torch.uint8, torch.int16, torch.int32, torch.int64, torch.float16, torch.bfloat16, torch.float32]
DTYPES += [torch.float64]
SHAPES = [(), (0,), (1,), (3,), (7, 5), (0, 4), (2, 3, 5)]

# -- several arrays in one buffer -------------------------------------------------------------------------------------


def draw(dtype: torch.dtype, shape: tuple[int, ...], seed: int) -> Tensor:
    """Any bits that the type has."""
    high, size = 2 if dtype == torch.bool else 256, (Form(dtype, shape).num_bytes,)
    data = torch.randint(high, size, dtype=torch.uint8, generator=torch.manual_seed(seed))
    return data.view(dtype).view(shape)


def list_bits(array: Tensor) -> list[int]:
    return array.contiguous().view(-1).view(torch.uint8).tolist()


def send_packed(arrays: list[Tensor], buffer: Tensor | None = None) -> list[Tensor]:
    """As to a GPU: in a buffer."""
    return send(arrays, CPU, allocate(forms_of(arrays), CPU) if buffer is None else buffer)


@pytest.mark.parametrize("seed", range(6))
def test_arrays_survive_a_buffer_to_the_bit(seed: int) -> None:
    dice = np.random.default_rng(seed)
    kinds = [(dtype, shape) for dtype in DTYPES for shape in SHAPES]
    arrays = [draw(*kinds[number], seed=int(number)) for number in dice.permutation(len(kinds))]
    made = send_packed(arrays)
    assert forms_of(made) == forms_of(arrays)
    assert list(map(list_bits, made)) == list(map(list_bits, arrays))
    assert len({array.untyped_storage().data_ptr() for array in made}) == 1
    assert all((array.data_ptr() - made[0].untyped_storage().data_ptr()) % ALIGNMENT == 0 for array in made)


@pytest.mark.parametrize("arrays", [[], [draw(torch.float32, (0, 3), 0)], [draw(torch.int64, (0,), 0)] * 3])
def test_nothing_is_packed_too(arrays: list[Tensor]) -> None:
    assert forms_of(send_packed(arrays)) == forms_of(arrays)
    assert count_bytes(forms_of(arrays)) == 0


def test_arrays_of_any_strides_are_packed() -> None:
    whole = draw(torch.int32, (6, 8), 0)
    parts = [whole.T, whole[::2, 1:7:3], whole[0].expand(3, 8), whole[:, :0]]
    assert all(map(torch.equal, send_packed(parts), parts))


def test_arrays_that_lie_in_the_buffer_stay_there_and_neighbors_do_not_touch() -> None:
    others = [draw(torch.bool, (5,), 1), draw(torch.float64, (3,), 2)]
    forms = [Form(torch.uint8, (2, 7)), *forms_of(others)]
    buffer = torch.full((count_bytes(forms),), 171, dtype=torch.uint8)
    inside = split(buffer, forms)[0].fill_(9)
    made = send([inside, *others], CPU, buffer)
    assert made[0].data_ptr() == buffer.data_ptr()
    assert all(map(torch.equal, made, [inside, *others]))
    used = sum(form.num_bytes for form in forms)
    assert int((buffer == 171).sum()) >= len(buffer) - used


def test_on_a_cpu_arrays_are_not_copied() -> None:
    arrays = [draw(torch.float32, (4,), 0), draw(torch.int64, (4,), 1)]
    assert [array.data_ptr() for array in send(arrays, CPU)] == [array.data_ptr() for array in arrays]


# -- memory that is used in turns -------------------------------------------------------------------------------------


@dataclass
class Lane:
    """A stream that does nothing before someone waits for it: the latest that a device may read the host's memory."""

    queued: deque[Callable[[], None]] = field(default_factory=deque)

    def mark(self) -> Any:
        return Mark(self, [*self.queued])


@dataclass
class Mark:
    lane: Lane
    before: list[Callable[[], None]]

    def synchronize(self) -> None:
        for work in self.before:
            if work in self.lane.queued:
                self.lane.queued.remove(work)
                work()


def fill_in_turns(num_slots: int, ahead: int, num_batches: int, ended: list[str]) -> Generator[list[int]]:
    """Slots as workers use them: with a batch that is asked for, so many behind it may be written."""
    slots = [[-1] for _ in range(num_slots)]
    try:
        for number in range(num_batches):
            for written in range(number, min(number + ahead + 1, num_batches)):
                slots[written % num_slots][0] = written
            yield slots[number % num_slots]
    finally:
        ended.append("slots")


def copy_all(lane: Lane, slots: tuple[int, int], spare: int, stop: int, asked: int) -> tuple[list[int], list[str]]:
    """What arrives of `asked` batches where each copy is as late as it may be, and what ended in which order."""
    arrived: list[int] = []
    ended: list[str] = []

    def copy(slot: list[int]) -> None:
        arrived.append(slot[0])
        ended.append("copy")

    batches = hold_until_copied(fill_in_turns(*slots, stop, ended), spare, lane.mark)
    for slot in itertools.islice(batches, asked):
        lane.queued.append(partial(copy, slot))
    batches.close()
    return arrived, ended


@pytest.mark.parametrize("ahead", [1, 2, 5])
@pytest.mark.parametrize("spare", [0, 1, 3])
@pytest.mark.parametrize(("stop", "asked"), [(12, 12), (12, 5), (1, 1), (3, 3), (0, 0)])
def test_memory_is_not_written_to_before_it_is_copied(ahead: int, spare: int, stop: int, asked: int) -> None:
    lane = Lane()
    arrived, ended = copy_all(lane, (ahead + 1 + spare, ahead), spare, stop, asked)
    assert arrived == list(range(asked))
    assert not lane.queued
    assert ended[-1:] == ["slots"] * (asked > 0)  # none is under way when the memory goes


@pytest.mark.parametrize("spare", [1, 3])
def test_that_check_notices_a_slot_too_few(spare: int) -> None:
    assert copy_all(Lane(), (2 + spare, 2), spare, 12, 12)[0] != list(range(12))


def test_an_error_of_whoever_copies_leaves_nothing_under_way() -> None:
    lane, arrived, ended = Lane(), list[int](), list[str]()
    batches = hold_until_copied(fill_in_turns(4, 2, 9, ended), 1, lane.mark)
    for slot in itertools.islice(batches, 5):
        lane.queued.append(partial(lambda slot: arrived.append(slot[0]), slot))
    with pytest.raises(RuntimeError, match="out of memory"):
        batches.throw(RuntimeError("out of memory"))
    assert arrived == [0, 1, 2, 3, 4]
    assert ended == ["slots"]


@dataclass
class Driver:
    """Of CUDA: pins memory, or says why not."""

    code: int
    calls: list[tuple[Any, ...]] = field(default_factory=list)

    def cudaHostRegister(self, start: int, num_bytes: int, flags: int) -> int:  # noqa: N802
        self.calls.append(("pin", start, num_bytes, flags))
        return self.code

    def cudaHostUnregister(self, start: int) -> int:  # noqa: N802
        self.calls.append(("free", start))
        return 0


@pytest.mark.parametrize("code", [0, 1])
def test_memory_is_pinned_while_it_is_used_where_the_driver_takes_it(code: int) -> None:
    memory, driver = torch.zeros(3, 5, dtype=torch.int32), Driver(code)
    with registered(memory, driver):
        assert driver.calls == [("pin", memory.data_ptr(), 60, 0)]
    assert driver.calls[1:] == ([] if code else [("free", memory.data_ptr())])


# -- the reference engine's way to a GPU ------------------------------------------------------------------------------


class Beside:
    """As SideStream, on a CPU: copies are made at once, and their events wait for nothing."""

    def __init__(self) -> None:
        self.lane, self.num_made, self.num_given = Lane(), 0, 0

    def run(self, make: Callable[[], Batch]) -> tuple[Batch, int]:
        batch = make()
        self.num_made += 1
        return batch, self.num_made

    def mark(self) -> Any:
        return self.lane.mark()

    def hand_over(self, batch: Batch, is_made: int) -> Batch:
        assert is_made == self.num_given + 1
        self.num_given += 1
        return batch


def make_loader(tmp_path: Path, **changes: Any) -> Loader:
    index = synthetic_index(22, 2, (30, 27), seed=3)
    recipe = Augmentation(crop_size=24, resize=26, crop="random", horizontal_flip=0.5, lighting="common")
    return loaders.make_loader(index, recipe, global_batch_size=5, cache_dir=tmp_path, **changes)


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.heavy)])
@pytest.mark.parametrize("channels", [3, 1])
def test_batches_that_travel_in_one_buffer_are_those_of_the_host(tmp_path: Path, channels: int, workers: int) -> None:
    """The fifth of a pass is short."""
    loader = make_loader(tmp_path, channels=channels, workers=workers)
    source = PixelBatches(loader.plan, loader.index, channels, loader.max_pixels, 0, 1)
    pinned: list[tuple[int, ...]] = []

    @contextmanager
    def pin(slots: Tensor) -> Iterator[None]:
        pinned.append(tuple(slots.shape))
        yield
        pinned.append(())

    beside: Any = Beside()
    made = []
    for batch in iterate_beside(loader, source, range(2, 14), beside, pin):
        assert not workers or batch.labels.untyped_storage().nbytes() > 24 * 24 * channels * 5  # beside the pixels
        made.append(Batch(*(tensor.clone() for tensor in batch[:4]), *batch[4:]))
    expected = list(loader.batches(2, 14))
    assert len(made) == len(expected) == 12
    for one, other in zip(made, expected, strict=True):
        assert all(map(torch.equal, one[:4], other[:4]))
        assert one[4:] == other[4:]
    assert beside.num_given == 12
    slots = torchvision_engine.PREFETCH * workers + 1 + torchvision_engine.SPARE
    size = count_bytes(torchvision_engine._list_forms(loader, source))
    assert pinned == ([(slots, size), ()] if workers else [])
