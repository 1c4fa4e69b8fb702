"""What trackers cost training: updates with a log line as a run writes it, for each tracker and for none.

Protocol as in model.py: all arms in one process, A B C A B C ..., one warm-up call each; ratios are taken round by
round. A call is 10 updates of the paper's network (3 with --quick), the log line after them, and at every fifth call
the filters of conv1, which a run shows at most once an epoch. `off` writes metrics.jsonl and its tables, as every run
does. W&B is offline: online, its own process sends, and training does not wait. A tracker whose package is missing has
no row.

The limit is 2 % of an update. Where a machine's own speed changes by more than that from one call to the next, the
ratios of whole calls say nothing, and the parts do: the seconds that training stands in a tracker's calls, over those
of the updates, and the processor's time of the threads and processes that trackers have beside training.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
from common.report import Report, add_device_options, describe_environment, new_parser, pick_effort, run_benchmark
from common.subject import TrainerStep, build_network, make_batch, pick_spec
from common.timing import Protocol, Spread, divide, time_calls

from alexnet_dist.assembly.trackers import check_mirrors, open_trackers
from alexnet_dist.base.errors import MachineError
from alexnet_dist.data.engines.loader import Batch
from alexnet_dist.models import AlexNetSpec
from alexnet_dist.parallel.runtime import Runtime, start_runtime
from alexnet_dist.runs.pictures import picture_filters
from alexnet_dist.settings.schema import Config, TrackingConfig
from alexnet_dist.tracking.pictures import Pictures
from alexnet_dist.tracking.trackers import Trackers

LIMIT = 0.02
CALLS_AN_EPOCH = 5
OFF = "off"


@dataclass(eq=False)
class Window:
    """Updates, then what a run gives its trackers."""

    step: TrainerStep
    batch: Batch
    spec: AlexNetSpec
    trackers: Trackers
    updates: int
    tracked_seconds: list[float] = field(default_factory=list)
    shares: list[float] = field(default_factory=list)  # of a call that its tracker takes

    def __call__(self) -> None:
        start = time.perf_counter()
        for _ in range(self.updates):
            self.step(self.batch)
        began = time.perf_counter()
        number = self.step.step
        row = {"event": "train", "step": number, "epoch": 0, "samples_seen": number * self.batch.num_images}
        figures = {"loss": self.step.loss_sum, "top1": 0.5, "lr": 0.01, "images_per_second": 100.0}
        self.trackers.log({**row, **figures, "data_wait_seconds": 0.0, "data_wait_fraction": 0.0})
        if number // self.updates % CALLS_AN_EPOCH == 0 and self.trackers.has_gallery:
            self.trackers.show(Pictures(number, picture_filters(self.step.model.state_dict(), self.spec)))
        ended = time.perf_counter()
        self.tracked_seconds.append(ended - began)
        self.shares.append((ended - began) / (ended - start))


def main() -> int:
    """Run the benchmark; the exit code."""
    parser = new_parser("tracking", "What W&B, TensorBoard and MLflow cost an update. No images are read.")
    add_device_options(parser)
    return run_benchmark(parser, measure)


def measure(options: argparse.Namespace) -> Report:
    """Every tracker that is installed."""
    runtime = start_runtime(options.device, "bf16" if options.precision == "auto" else options.precision)
    report = Report(describe_environment(options, runtime.device))
    protocol = pick_effort(options, full=Protocol(5, 5.0), quick=Protocol(3, 0.0, 1), tiny=Protocol(2, 0.0))
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        windows = open_windows(Path(folder), runtime, options)
        began, before = time.perf_counter(), read_beside()
        figures = time_calls(windows, protocol, runtime.device)
        beside = (read_beside() - before) / (time.perf_counter() - began)
        for window in windows.values():
            window.trackers.finish({"status": "finished"})
    for name, seconds in figures.items():
        spread, tracked = Spread.of(seconds), Spread.of(windows[name].tracked_seconds)
        row = {"tracker": name, "update_ms": 1000 * spread.median / windows[name].updates}
        report.rows.append({**row, "line_ms": 1000 * tracked.median, "line_ms_max": 1000 * tracked.max})
        if name != OFF:
            ratio, share = divide(seconds, figures[OFF]), Spread.of(windows[name].shares)
            report.add_ratio(f"{name}/{OFF}", ratio, "seconds of updates with it over those without it")
            report.add_ratio(f"{name}_calls/updates", share, f"seconds over seconds; limit {LIMIT}")
            verdict = "within" if share.max <= LIMIT else "above"
            most = f"{share.median:.2%} of the time of updates, {share.max:.2%} at most"
            report.notes.append(f"{name}: training stands in its calls for {most}; {verdict} {LIMIT:.0%}.")
    report.notes.append(f"Threads and processes of all trackers together take {beside:.2%} of a core beside training.")
    return report


def read_beside() -> float:
    """Seconds of the processor that this process's other Python threads, and its children, have had."""
    process, main_thread = psutil.Process(), threading.main_thread()
    others = {thread.native_id for thread in threading.enumerate() if thread is not main_thread}
    seconds = sum(thread.user_time + thread.system_time for thread in process.threads() if thread.id in others)
    for child in process.children(recursive=True):
        with contextlib.suppress(psutil.Error):  # it has just ended
            times = child.cpu_times()
            seconds += times.user + times.system
    return seconds


def open_windows(folder: Path, runtime: Runtime, options: argparse.Namespace) -> dict[str, Window]:
    """An arm for each tracker; all of them train one network."""
    batch_size = pick_effort(options, full=64, quick=8, tiny=2)
    spec = pick_spec("paper", options.tiny)
    batch = make_batch(batch_size, spec, runtime.device, channels_last=True)
    step = TrainerStep(runtime, build_network(spec, runtime, channels_last=True), batch_size)
    arms: dict[str, dict[str, Any]] = {
        OFF: {},
        "wandb": {"wandb": "offline"},
        "tensorboard": {"tensorboard": True},
        "mlflow": {"mlflow": str(folder / "mlruns")},
    }
    updates, windows = pick_effort(options, full=10, quick=3, tiny=2), dict[str, Window]()
    for name, words in arms.items():
        run, tracking = folder / name, TrackingConfig(**words)
        run.mkdir()
        with contextlib.suppress(MachineError):
            check_mirrors(tracking, run)
            trackers = open_trackers(Config(tracking=tracking), run, 0, "5e6f7a8b")
            windows[name] = Window(step, batch, spec, trackers, updates)
    return windows


if __name__ == "__main__":
    sys.exit(main())
