"""Where the time of an update goes: `train --profile N`.

First a timeline of N updates holds the moments at which one span (base/spans.py) ends and another begins, so its parts
add up to the whole. On a CPU the clock is the host's. On a GPU it is that of the network's stream: work counts where
the GPU does it, and a wait where it leaves the GPU idle. Then torch.profiler traces the next N updates. It slows them
down, those of a small network by a third, and so the table is not made of them.
"""

from __future__ import annotations

import gzip
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile, record_function

from alexnet_dist.base.errors import InterruptedRunError
from alexnet_dist.base.spans import BACKWARD, COMMUNICATION, FORWARD, REST, record_spans, span
from alexnet_dist.models import LocalResponseNorm, MapResponseNorm, named_layers
from alexnet_dist.models.convolutions import TowersApart
from alexnet_dist.models.joined_pooling import JoinedPooling

LEFT_OUT = 5  # first updates of a start: workers begin, kernels are chosen, memory is taken
_AFTER_GRADIENT = "after a gradient"  # the last one of a backward pass ends in a wait for the other replicas
POOLING, LRN_AND_POOLING = "pooling", "LRN and pooling"
_KINDS: dict[type[nn.Module], str] = {
    LocalResponseNorm: "LRN",
    MapResponseNorm: "LRN",
    nn.MaxPool2d: POOLING,
    nn.AdaptiveAvgPool2d: POOLING,
    nn.ReLU: "ReLU",
    nn.Dropout: "dropout",
    TowersApart: "convolutions",  # it calls no hooks of theirs
}


@dataclass(frozen=True)
class Profile:
    """Some updates of one process.

    Args:
        first: number of the first update, from 1.
        num_updates: whose times were taken.
        num_wanted: that were asked for.
        seconds: of an update, by span; a layer is a span `forward.NAME`.
        num_traced: updates of the trace, which follow.
        trace: Chrome's trace format, JSON compressed by gzip; None = no update was left for it.
    """

    first: int
    num_updates: int
    num_wanted: int
    seconds: dict[str, float]
    num_traced: int = 0
    trace: bytes | None = None

    @property
    def total(self) -> float:
        """Seconds of an update."""
        return sum(self.seconds.values())

    def share(self, *names: str) -> float:
        """The part of an update that these spans take, layers included; 0 to 1."""
        wanted = [value for key, value in self.seconds.items() if key.split(".")[0] in names]
        return sum(wanted) / self.total if self.total else 0.0


class Timeline:
    """Moments between spans, on the device's clock.

    Args:
        device: where the network is.
        averages: whether a backward pass ends in a wait for other replicas.
        clock: seconds, of a CPU.
    """

    def __init__(self, device: torch.device, averages: bool, clock: Callable[[], float] = time.perf_counter) -> None:
        self._device, self._averages, self._clock = device, averages, clock
        self._open: list[str] = []
        self._marks: list[tuple[str | None, Any]] = []  # what begins there, None = nothing that counts; the moment
        self._num_whole = 0  # marks until the end of the last update

    def begin(self) -> None:
        """An update begins."""
        self._open.clear()
        self._mark(REST)
        record_spans(self._record)

    def end(self) -> None:
        """The update has ended; what comes until the next one does not count."""
        record_spans(None)
        self._mark(None)
        self._num_whole = len(self._marks)

    def note_gradient(self, _: torch.Tensor) -> None:
        """A parameter has its gradient."""
        if self._open[-1:] == [BACKWARD]:
            self._mark(_AFTER_GRADIENT)

    def measure(self) -> dict[str, float]:
        """Seconds of each span, over all updates that have ended; the device is waited for."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds: Counter[str] = Counter()
        for (name, began), (following, ended) in pairwise(self._marks[: self._num_whole]):
            if name == _AFTER_GRADIENT:
                name = COMMUNICATION if self._averages and following == REST else BACKWARD
            if name is not None:
                on_gpu = self._device.type == "cuda"
                seconds[name] += began.elapsed_time(ended) / 1000 if on_gpu else ended - began
        return dict(seconds)

    @contextmanager
    def _record(self, name: str) -> Iterator[None]:
        self._open.append(name)
        self._mark(name)
        try:
            yield
        finally:
            self._open.pop()
            self._mark(self._open[-1] if self._open else REST)

    def _mark(self, name: str | None) -> None:
        if self._device.type != "cuda":
            self._marks.append((name, self._clock()))
            return
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record(torch.cuda.current_stream(self._device))
        self._marks.append((name, event))


class Profiler:
    """Records some updates of a training run; as a context it ends with the training and then reports.

    Args:
        num_updates: that are wanted; fewer where the run has no more.
        model: this process's part of the network.
        by_layer: whether the network runs module by module, and not compiled.
        averages: see `Timeline`.
        device: where the network is.
        report: takes what was found; None where there was no update.
    """

    def __init__(
        self,
        num_updates: int,
        model: nn.Module,
        *,
        by_layer: bool,
        averages: bool,
        device: torch.device,
        report: Callable[[Profile | None], None],
    ) -> None:
        self._num_wanted, self._model, self._by_layer, self._report = num_updates, model, by_layer, report
        self._timeline, self._device = Timeline(device, averages), device
        self._timed = self._traced = range(0)  # steps at which such updates begin
        self._step = -1
        self._num_timed = self._num_traced = 0
        self._tracer: profile | None = None
        self._handles: list[torch.utils.hooks.RemovableHandle] = []
        self._is_reported = False

    def choose_updates(self, step: int, total: int) -> None:
        """Choose updates of a run of `total` that begins at `step`; where few are left, the table goes first."""
        left = total - step
        first = step + min(LEFT_OUT, left // 3)
        middle = first + min(self._num_wanted, -(-(total - first) // 2))
        self._timed, self._traced = range(first, middle), range(middle, min(middle + self._num_wanted, total))

    def begin_update(self, step: int) -> None:
        """The update at a step begins: its batch is waited for."""
        self._step = step
        if step in self._timed:
            if step == self._timed.start:
                self._attach()
            self._timeline.begin()
        elif step in self._traced:
            self._tracer = self._tracer or _start_tracer(self._device)
            record_spans(record_function)

    def end_update(self) -> None:
        """It has been made."""
        if self._step in self._timed:
            self._timeline.end()
            self._num_timed += 1
        elif self._step in self._traced:
            record_spans(None)
            self._num_traced += 1
        if self._step + 1 == max(self._timed.stop, self._traced.stop):
            self._finish()

    def __enter__(self) -> Profiler:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        record_spans(None)
        if kind is None or issubclass(kind, InterruptedRunError):
            self._finish()
        self._detach()

    def _attach(self) -> None:
        note = self._timeline.note_gradient
        for parameter in self._model.parameters():
            if parameter.requires_grad:
                handle = parameter.register_post_accumulate_grad_hook(note)  # type: ignore[no-untyped-call]
                self._handles.append(handle)
        for name, module in name_modules(self._model) if self._by_layer else ():
            self._handles += _watch(module, f"{FORWARD}.{name}")

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles.clear()
        if self._tracer is not None:
            self._tracer.stop()

    def _finish(self) -> None:
        if self._is_reported:
            return
        self._is_reported, num_timed = True, self._num_timed
        self._detach()
        if not num_timed:
            self._report(None)
            return
        seconds = {name: value / num_timed for name, value in self._timeline.measure().items()}
        trace = _export(self._tracer) if self._tracer is not None else None
        self._tracer = None
        first = self._timed.start + 1
        self._report(Profile(first, num_timed, self._num_wanted, seconds, self._num_traced, trace))


def name_modules(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """conv1 .. fc8 and the other modules that compute, in the order of the forward pass; those go by their kind."""
    layers = {id(layer): name for name, layer in named_layers(model).items()}
    named = [(layers.get(id(module)) or _find_kind(module), module) for module in model.modules()]
    return [(name, module) for name, module in named if name is not None]


def _find_kind(module: nn.Module) -> str | None:
    if isinstance(module, JoinedPooling):
        return POOLING if module.norm is None else LRN_AND_POOLING
    return next((kind for type_, kind in _KINDS.items() if isinstance(module, type_)), None)


def _watch(module: nn.Module, name: str) -> list[torch.utils.hooks.RemovableHandle]:
    """Make a span of each forward pass of a module."""
    entered: list[AbstractContextManager[None]] = []

    def enter(*_: object) -> None:
        entered.append(span(name))
        entered[-1].__enter__()

    def leave(*_: object) -> None:
        entered.pop().__exit__(None, None, None)

    return [module.register_forward_pre_hook(enter), module.register_forward_hook(leave)]


def _start_tracer(device: torch.device) -> profile:
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it says on stderr that it starts, and that there is no GPU
    on_gpu = [ProfilerActivity.CUDA] if device.type == "cuda" else []
    tracer = profile(activities=[ProfilerActivity.CPU, *on_gpu])
    tracer.start()
    return tracer


def _export(tracer: profile) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "trace.json"
        tracer.export_chrome_trace(str(file))
        return gzip.compress(file.read_bytes())
