"""A whole update as one CUDA graph: forward, loss, backward and update rule are captured once, and then replayed.

A replay launches all kernels of an update at once. What changes from one update to the next lies in tensors that stay
where they are: the batch, the scale of its losses, the rates (`place_rates`), the counters. Dropout stays a function of
(seed, step): a replay reads the seed that PyTorch's generator has at that moment from the device, and begins at its
first number, as an eager update does.

The first updates are eager, and choose and build kernels. Then one update is made twice from the same state: eagerly,
and by a replay. Where a bit differs, or nothing could be captured, all updates are eager from then on.

After docs.pytorch.org/docs/stable/notes/cuda.html: under DDP the graph holds the sums over the processes, too. For that
DDP is built in the stream of the capture, and 11 updates come first, as it waits for the device in the first ten.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Protocol, TypeAlias, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from alexnet_dist.data.engines.loader import Batch
from alexnet_dist.parallel.runtime import Runtime
from alexnet_dist.training.flat_update import FlatSGD
from alexnet_dist.training.optim import optimizer_tensors, send_rates
from alexnet_dist.training.step import DeviceCounters
from alexnet_dist.training.update_rules import BITS

logger = logging.getLogger("alexnet_dist")

WARM_UP = 11  # eager updates before a capture

T = TypeVar("T")
Step: TypeAlias = Callable[[Batch, float | Tensor], None]
"""Makes one update of a batch, with the scale of its losses; see `train_step`."""


class Recorder(Protocol):
    """Where updates are made, and what records one."""

    def aside(self) -> AbstractContextManager[None]:
        """The stream in which an update is made, eager or not, and in which DDP is to be built."""

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        """Take a call down, within `aside`, without making it; what makes it then, again and again."""


class CudaRecorder:
    """CUDA graphs of a device."""

    def __init__(self, device: torch.device) -> None:
        self._device, self._stream = device, torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def aside(self) -> Iterator[None]:
        """See `Recorder`. What lies before and after in the network's stream keeps its order."""
        current = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            yield
        current.wait_stream(self._stream)

    def record(self, call: Callable[[], None]) -> Callable[[], None]:
        """See `Recorder`. The loader's threads may take memory meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            call()
        return graph.replay


class StepGraph:
    """Makes updates: eagerly at first, then by replays.

    Args:
        runtime: this process among the others.
        recorder: where they are made.
        model: the network, not replicated.
        optimizer: over its parameters, with its rates on the device.
        counters: what the step adds to.
        step: makes an update.
        report: is told in words, once, why all updates stay eager.
    """

    def __init__(
        self,
        runtime: Runtime,
        recorder: Recorder,
        model: nn.Module,
        optimizer: Optimizer,
        counters: DeviceCounters,
        step: Step,
        report: Callable[[str], None],
    ) -> None:
        self._runtime, self._recorder, self._model = runtime, recorder, model
        self._optimizer, self._counters, self._step, self._report = optimizer, counters, step, report
        self._fixed_rates: list[float] = []
        self._num_eager, self._is_refused = 0, False
        self._replay: Callable[[], None] | None = None
        self._inputs: _Inputs | None = None

    @property
    def is_replayed(self) -> bool:
        """Whether updates are replays by now."""
        return self._replay is not None

    def update(self, batch: Batch, scale: float, seed: Callable[[], None]) -> None:
        """Make one update; a batch of another shape than the captured one's is made eagerly.

        Args:
            batch: this replica's part of the global batch.
            scale: of its losses.
            seed: gives dropout's generator the state of this update.
        """
        fixed_rates = send_rates(self._optimizer)
        if fixed_rates != self._fixed_rates:  # a layer was frozen: no capture before it is right any more
            self._fixed_rates, self._num_eager, self._replay = fixed_rates, 0, None
        with self._recorder.aside():
            seed()
            if self._replay is not None and self._inputs is not None and self._inputs.fit(batch):
                self._inputs.fill(batch, scale)
                self._replay()
            elif self._replay is None and self._num_eager >= WARM_UP and not self._is_refused:
                self._try(batch, scale, seed)
            else:
                self._step(batch, scale)
                self._num_eager += 1

    def release(self) -> None:
        """Give up the graph, if any: NCCL does not let go of its communicators while one holds them."""
        self._replay = self._inputs = None

    def list_state(self) -> dict[str, Tensor]:
        """All tensors that an update changes."""
        weights = {**dict(self._model.named_parameters()), **dict(self._model.named_buffers())}
        shadows = self._optimizer.shadows if isinstance(self._optimizer, FlatSGD) else None
        copies = {} if shadows is None else {"shadows": shadows}
        return {**weights, **copies, **optimizer_tensors(self._optimizer, self._model), **vars(self._counters)}

    def _try(self, batch: Batch, scale: float, seed: Callable[[], None]) -> None:
        """Make an update eagerly, and once more from the same state by a replay; settle which way they are made."""
        attempt, state = _Attempt(), self.list_state()
        before = attempt(partial(_copy, state))
        inputs = self._inputs = attempt(lambda: _Inputs(batch))
        # Whatever becomes of the rest, this update is made. It reads the places, as the captured one will: a kernel
        # that takes the scale as a tensor is built and loaded now, which nothing may be during a capture.
        if inputs is None:
            self._step(batch, scale)
        else:
            inputs.fill(batch, scale)
            self._step(inputs.batch, inputs.scale)
        after = attempt(partial(_copy, state))
        replay = attempt(partial(self._capture, inputs)) if inputs is not None else None
        differing = None
        if self._all(replay is not None) and before is not None and after is not None and replay is not None:
            _restore(state, before)
            seed()
            attempt(replay)  # all processes or none: it waits for their sums
            differing = attempt(lambda: find_difference(state, after))
        own = f"a replay and an eager update differ in {differing}" if differing is not None else attempt.failure
        failure = next(filter(None, self._runtime.gather(own)), "")
        if not failure:
            self._replay = replay
            logger.info("graph     captured: a replay has the bits of an eager update")
            return
        if after is not None:
            _restore(state, after)
        self._optimizer.zero_grad(set_to_none=True)  # of a capture that ended halfway
        self._is_refused, self._inputs = True, None
        self._report(failure)

    def _capture(self, inputs: _Inputs) -> Callable[[], None]:
        return self._recorder.record(lambda: self._step(inputs.batch, inputs.scale))

    def _all(self, is_good: bool) -> bool:
        """Whether something holds in every process."""
        return self._runtime.agree(int(not is_good)) == [0]


class _Inputs:
    """The places from which a captured update reads its batch."""

    def __init__(self, batch: Batch) -> None:
        images, labels, mask = (torch.empty_like(tensor) for tensor in (batch.images, batch.labels, batch.mask))
        self.batch = batch._replace(images=images, labels=labels, mask=mask)
        self.scale = torch.empty((), device=batch.mask.device)  # float32, as losses are

    def fit(self, batch: Batch) -> bool:
        """Whether a batch has the shape and the layout of the places."""
        return _describe(batch) == _describe(self.batch)

    def fill(self, batch: Batch, scale: float) -> None:
        """Copy a batch there; the device is not waited for."""
        self.batch.images.copy_(batch.images)
        self.batch.labels.copy_(batch.labels)
        self.batch.mask.copy_(batch.mask)
        self.scale.fill_(scale)


def _describe(batch: Batch) -> list[tuple[object, ...]]:
    return [(part.shape, part.stride(), part.dtype) for part in (batch.images, batch.labels, batch.mask)]


class _Attempt:
    """Makes calls until one fails; those after it are left out."""

    def __init__(self) -> None:
        self.failure = ""

    def __call__(self, call: Callable[[], T]) -> T | None:
        """What the call gives; None where it, or an earlier one, has failed."""
        if self.failure:
            return None
        try:
            return call()
        except Exception as error:  # noqa: BLE001 (whatever it is, an eager update can do without)
            self.failure = f"{type(error).__name__}: {error}".splitlines()[0]
            return None


def _copy(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in state.items()}


def _restore(state: Mapping[str, Tensor], copies: Mapping[str, Tensor]) -> None:
    with torch.no_grad():
        for name, tensor in state.items():
            tensor.copy_(copies[name])


def find_difference(state: Mapping[str, Tensor], copies: Mapping[str, Tensor]) -> str | None:
    """The first tensor of which a bit differs; the device is waited for."""
    for name, tensor in state.items():
        kind = BITS[tensor.element_size()]
        if not torch.equal(tensor.detach().view(kind), copies[name].view(kind)):
            return name
    return None
