"""What crosses between the processes that hold one network: collectives that autograd knows, in pairs.

Shapes: K processes, B rows (images), C columns (channels or features). Every exchange cuts a tensor along `split`
(None: sends all of it to everyone) and joins what arrives along `join` (None: adds it up). Its adjoint is the same
exchange with the two swapped:

    gather columns   (B, C) -> (B, K*C)     backward: each column's gradients are added up where the column is
    gather rows      (B, C) -> (K*B, C)     backward: likewise for rows
    return rows      (K*B, C) -> (B, K*C)   backward: (B, K*C) -> (K*B, C), nothing is added
    sum parts        (B, C) -> (B, C)       backward: identity, as every process computes the same loss from the sum

An exchange is begun and ended by two nodes of the graph. What is computed between them, forward or backward, runs while
the numbers travel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor

from alexnet_dist.base.spans import COMMUNICATION, span

ROWS, COLUMNS = 0, 1
_all_gather = getattr(dist, "all_gather_single", dist.all_gather_into_tensor)  # its name since PyTorch 2.14
WIRE_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(eq=False)
class Wire:
    """The connection between the processes that hold one network.

    Args:
        group: these processes.
        dtype: what numbers travel as; None = as they were computed.
        bytes_sent: by this process so far.
    """

    group: dist.ProcessGroup
    dtype: torch.dtype | None = None
    bytes_sent: int = 0

    @property
    def num_parts(self) -> int:
        """Processes on the wire."""
        return self.group.size()


@dataclass(eq=False)
class _Flight:
    """One exchange, and then its adjoint."""

    wire: Wire
    split: int | None
    join: int | None
    work: dist.Work | None = None
    received: Tensor | None = None
    sent: Tensor | None = None  # kept alive until it has arrived
    dtype: torch.dtype = torch.float32
    is_channels_last: bool = False

    def launch(self, values: Tensor) -> None:
        """Begin to send."""
        self.dtype = values.dtype
        self.is_channels_last = values.dim() == 4 and values.is_contiguous(memory_format=torch.channels_last)
        values = values.movedim(1, -1) if self.is_channels_last else values  # dense in memory as it stands
        values = values.to(self.wire.dtype or values.dtype)
        wire, num_parts = self.wire, self.wire.num_parts
        if self.split is None:
            self.sent = values.contiguous()
            self.received = values.new_empty((num_parts, *values.shape))  # (K, ...)
            work = _all_gather(self.received.flatten(0, 1), self.sent, wire.group, async_op=True)
            wire.bytes_sent += (num_parts - 1) * self.sent.nbytes
        else:
            self.sent = torch.stack(values.chunk(num_parts, self._dim(self.split)))  # (K, ...)
            self.received = torch.empty_like(self.sent)
            work = dist.all_to_all_single(self.received, self.sent, group=wire.group, async_op=True)
            wire.bytes_sent += (num_parts - 1) * self.sent[0].nbytes
        self.work = work

    def land(self) -> Tensor:
        """Wait for what arrives, join it, and turn round for the way back."""
        assert self.work is not None
        assert self.received is not None
        with span(COMMUNICATION):
            self.work.wait()
        if self.join is None:
            # In the order of the ranks and in at least float32: all processes get the same bits.
            wide = torch.promote_types(self.received.dtype, torch.float32)
            joined = self.received.sum(0, dtype=wide)
        else:
            joined = torch.cat(self.received.unbind(0), self._dim(self.join))
        joined = joined.movedim(-1, 1) if self.is_channels_last else joined
        self.work = self.received = self.sent = None
        self.split, self.join = self.join, self.split
        return joined.to(self.dtype)

    def _dim(self, dim: int) -> int:
        return -1 if self.is_channels_last and dim == COLUMNS else dim


class _Begin(torch.autograd.Function):
    """Launches in the forward pass, lands in the backward pass."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, flight: _Flight) -> Tensor:
        ctx.flight = flight
        flight.launch(values)
        return values.new_empty(0)  # a thread of the graph from here to the landing

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        return ctx.flight.land(), None


class _End(torch.autograd.Function):
    """Lands in the forward pass, launches in the backward pass."""

    @staticmethod
    def forward(ctx: Any, thread: Tensor, flight: _Flight) -> Tensor:
        ctx.flight = flight
        return flight.land()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        ctx.flight.launch(grad)
        return grad.new_empty(0), None


class _SumParts(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, wire: Wire) -> Tensor:
        flight = _Flight(wire, split=None, join=None)
        flight.launch(values)
        return flight.land()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


class _ScaleGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return values.view_as(values)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad * ctx.factor, None


Exchange = tuple[Tensor, _Flight]
"""An exchange under way."""


@torch.compiler.disable  # type: ignore[untyped-decorator]
def begin_gather(values: Tensor, wire: Wire, dim: int) -> Exchange:
    """Begin to gather along ROWS or COLUMNS what each process has; every process gets all of it."""
    return _begin(values, _Flight(wire, split=None, join=dim))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def begin_return(values: Tensor, wire: Wire) -> Exchange:
    """Begin to give each process its own rows, with the columns of all."""
    return _begin(values, _Flight(wire, split=ROWS, join=COLUMNS))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def end(exchange: Exchange) -> Tensor:
    """Wait for an exchange."""
    return cast(Tensor, _End.apply(*exchange))


def gather(values: Tensor, wire: Wire, dim: int) -> Tensor:
    """Gather along ROWS or COLUMNS, at once."""
    return cast(Tensor, end(begin_gather(values, wire, dim)))


@torch.compiler.disable  # type: ignore[untyped-decorator]
def sum_parts(values: Tensor, wire: Wire) -> Tensor:
    """Add up what the processes have; for a sum from which each of them computes the same loss."""
    return cast(Tensor, _SumParts.apply(values, wire))


def scale_gradient(values: Tensor, factor: float) -> Tensor:
    """The values as they are; their gradient is multiplied."""
    return cast(Tensor, _ScaleGradient.apply(values, factor))


def _begin(values: Tensor, flight: _Flight) -> Exchange:
    return cast(Tensor, _Begin.apply(values, flight)), flight
