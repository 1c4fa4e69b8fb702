"""Whether other threads of a CPU than PyTorch's own choice train faster: their number, their cores, how they wait.

Protocol: each arm is a process of its own, since OpenMP reads its settings once. All are there from the beginning and
take turns, A B C D A B C D ...: two warm-up windows each, then 5 rounds of windows of at least 3 s in a full run. The
processes of the other arms are stopped meanwhile. A call is the trainer's whole step of the paper's network at 224
pixels, as a run computes it. Ratios are of images per second over `as_a_run`, round by round.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from functools import partial

from common.report import Report, describe_environment, new_parser, pick_effort, run_benchmark
from common.subject import TrainerStep, build_network, make_batch, pick_spec
from common.timing import Spread, divide, interleave, measure_seconds

from alexnet_dist.parallel.runtime import start_runtime

OWN = "as_a_run"  # PyTorch's choice: a thread for each core, on any of them
ARMS = {
    OWN: {},
    "one_thread": {"OMP_NUM_THREADS": "1"},
    "bound_to_cores": {"OMP_PROC_BIND": "true", "OMP_PLACES": "cores"},
    "waiting_busily": {"OMP_WAIT_POLICY": "active"},
}
SETTINGS = ("OMP_NUM_THREADS", "OMP_PROC_BIND", "OMP_PLACES", "OMP_WAIT_POLICY", "MKL_NUM_THREADS", "GOMP_CPU_AFFINITY")


def main() -> int:
    """Run the benchmark; the exit code."""
    parser = new_parser("threads", "Speed of a CPU with other threads. No images are read.")
    parser.add_argument("--precision", choices=("auto", "fp32", "bf16"), default="auto", help="default: auto")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    if "--worker" in sys.argv:
        take_turns(parser.parse_known_args()[0])
        return 0
    return run_benchmark(parser, measure)


def measure(options: argparse.Namespace) -> Report:
    """Each arm's step."""
    report = Report(describe_environment(options))
    batch_size, rounds = pick_batch_size(options), pick_effort(options, full=5, quick=3, tiny=1)
    with contextlib.ExitStack() as stack:
        arms = {name: stack.enter_context(started(name)) for name in ARMS}
        windows = {name: partial(ask, arm) for name, arm in arms.items()}
        interleave(windows, pick_effort(options, full=2, quick=1, tiny=1))
        seconds = interleave(windows, rounds)
    for name, values in seconds.items():
        spread = Spread.of(values)
        row = {"arm": name, "images_per_second": batch_size / spread.median, "ms": 1000 * spread.median}
        report.rows.append(row | {"ms_min": 1000 * spread.min, "ms_max": 1000 * spread.max})
        if name != OWN:
            words = " ".join(f"{variable}={value}" for variable, value in ARMS[name].items())
            what = f"images per second, whole training step, batch {batch_size}, with {words}"
            report.add_ratio(f"{name}/{OWN}", divide(seconds[OWN], values), what)
    return report


def pick_batch_size(options: argparse.Namespace) -> int:
    """Images in a step."""
    return pick_effort(options, full=64, quick=8, tiny=2)


@contextlib.contextmanager
def started(name: str) -> Iterator[subprocess.Popen[str]]:
    """The process of an arm, which measures when it is asked."""
    environment = {variable: value for variable, value in os.environ.items() if variable not in SETTINGS}
    words = [sys.executable, __file__, "--worker", *sys.argv[1:]]
    pipe = subprocess.PIPE
    process = subprocess.Popen(words, stdin=pipe, stdout=pipe, text=True, env=environment | ARMS[name])
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def ask(process: subprocess.Popen[str]) -> float:
    """Seconds a step, of one window.

    Raises:
        RuntimeError: the process has ended.
    """
    assert process.stdin is not None
    assert process.stdout is not None
    process.send_signal(signal.SIGCONT)
    with contextlib.suppress(BrokenPipeError):
        print(file=process.stdin, flush=True)
    answer = process.stdout.readline()
    process.send_signal(signal.SIGSTOP)  # threads that wait busily would take a core from the next arm
    if not answer:
        raise RuntimeError(f"an arm ended with {process.wait()}")
    return float(answer)


def take_turns(options: argparse.Namespace) -> None:
    """In the process of an arm: measure a window for each line that comes, and print its seconds a step."""
    runtime = start_runtime("cpu", options.precision)
    spec, batch_size = pick_spec("paper", options.tiny), pick_batch_size(options)
    step = TrainerStep(runtime, build_network(spec, runtime, True), batch_size)
    batch = make_batch(batch_size, spec, runtime.device, channels_last=True)
    seconds, calls = pick_effort(options, full=3.0, quick=0.3, tiny=0.0), 1
    for _ in sys.stdin:
        took = measure_seconds(partial(step, batch), calls, runtime.device) / calls
        print(took, flush=True)
        calls = max(calls, round(seconds / took))


if __name__ == "__main__":
    sys.exit(main())
