"""Checkpoints that are written beside the training: one at a time, from a copy of the state in host memory."""

from __future__ import annotations

import threading
from collections.abc import Callable

import torch
from torch import Tensor

from alexnet_dist.base.errors import AlexNetDistError


class Saver:
    """Writes what it is given, in a thread of its own or at once. For the main process.

    Args:
        in_background: in a thread; the training goes on meanwhile.
    """

    def __init__(self, in_background: bool) -> None:
        self.in_background = in_background
        self._copies: dict[str, Tensor] = {}  # used again by each save
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    def copy(self, tensors: dict[str, Tensor], kind: str) -> dict[str, Tensor]:
        """The tensors as they are now, in host memory, good until the next copy of this kind; at once: themselves."""
        if not self.in_background:
            return tensors
        on_gpu = any(tensor.is_cuda for tensor in tensors.values())
        copied = {}
        for name, tensor in tensors.items():
            kept = self._copies.get(f"{kind}/{name}")
            if kept is None or (kept.shape, kept.dtype) != (tensor.shape, tensor.dtype):
                kept = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            self._copies[f"{kind}/{name}"] = copied[name] = kept.copy_(tensor.detach(), non_blocking=True)
        if on_gpu:
            torch.cuda.current_stream().synchronize()
        return copied

    def begin(self, write: Callable[[], None]) -> None:
        """Write; the one before has ended, see `finish`."""
        if not self.in_background:
            write()
            return
        self._thread = threading.Thread(target=self._run, args=(write,), name="saver")
        self._thread.start()

    def find_failure(self) -> AlexNetDistError | None:
        """Why what was being written could not be; None while nothing of it is known."""
        return self._error if isinstance(self._error, AlexNetDistError) else None

    def wait(self) -> None:
        """Wait until nothing is being written."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

    def finish(self) -> None:
        """Wait until all is written.

        Raises:
            DivergedError, MachineError: what the writing has raised.
        """
        self.wait()
        if self._error is not None:
            raise self._error

    def _run(self, write: Callable[[], None]) -> None:
        try:
            write()
        except BaseException as error:  # noqa: BLE001 (raised where it is waited for)
            self._error = error
