"""Between the loader and the network: all processes agree that a batch is used, or stop together."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

from alexnet_dist.base.errors import AlexNetDistError
from alexnet_dist.base.signals import StopRequest, raise_stopped
from alexnet_dist.data.engines.loader import Batch
from alexnet_dist.data.index import BadFile, BadFilesError
from alexnet_dist.parallel.runtime import Runtime


@dataclass(eq=False)
class BatchGate:
    """Lets batches through.

    One exchange of five integers in host memory carries the number of real images, a request to stop and a bad file;
    the device is not waited for.

    Args:
        runtime: this process among the others.
        skip_bad_files: leave them out instead of ending the run.
        stop: the signals that this process received, and what its program wants.
        bad_files: those this process met, with full paths.
        root: what this process's paths are told relative to; machines may have roots of their own.
        find_failure: why this process cannot go on, if it cannot.
    """

    runtime: Runtime
    skip_bad_files: bool
    stop: StopRequest = field(default_factory=StopRequest)
    bad_files: set[BadFile] = field(default_factory=set)
    root: Path = Path()
    find_failure: Callable[[], AlexNetDistError | None] = lambda: None

    def admit(self, batch: Batch) -> int:
        """The number of real images in the batches of all processes.

        Raises:
            InterruptedRunError: some process was asked to stop.
            DataError: some process met a bad file that may not be skipped.
            AlexNetDistError: some process cannot go on.
        """
        self.bad_files.update(batch.bad_files)
        error = self.find_failure() or name_bad_file([] if self.skip_bad_files else batch.bad_files, self.root)
        num_images, num_failed, *stops = self.runtime.agree(
            self.runtime.count_once(batch.num_images), int(error is not None), *self.stop.counts()
        )
        if num_failed:
            self.runtime.raise_together(error)
        raise_stopped(stops)
        return num_images

    def gather_bad_files(self) -> set[BadFile]:
        """The bad files of all processes, as they lie below this one's root."""
        parts = self.runtime.gather((self.root, self.bad_files))
        return {bad if root == self.root else _move(bad, root, self.root) for root, part in parts for bad in part}


def _move(bad: BadFile, root: Path, new_root: Path) -> BadFile:
    return replace(bad, path=os.path.normpath(new_root / os.path.relpath(bad.path, root)))


def name_bad_file(bad_files: list[BadFile], root: Path | None = None) -> AlexNetDistError | None:
    """The error for the first of some bad files of a batch, where they may not be skipped; None without any."""
    if not bad_files:
        return None
    remedy = "mend or remove it, or set data.on_bad_file: skip"
    error = BadFilesError(Path(), tuple(bad_files[:1]), remedy, what="an image cannot be decoded")
    error.data_root = root
    return error
