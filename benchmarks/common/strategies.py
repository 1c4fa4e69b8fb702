"""One process of `parallel.py`: it trains under every strategy in turn; the main process writes what it found."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from alexnet_dist.assembly.loaders import place_model
from alexnet_dist.assembly.strategy import cut_network, replicate_network
from alexnet_dist.base.machine import available_cores, tune_allocator
from alexnet_dist.costs.measure import measure_compute
from alexnet_dist.costs.model import predict
from alexnet_dist.costs.network_size import measure_network
from alexnet_dist.costs.probe import links_from_probe, probe_links
from alexnet_dist.costs.transfers import Strategy
from alexnet_dist.models import AlexNetSpec, build_model
from alexnet_dist.parallel.collectives import Wire
from alexnet_dist.parallel.mesh import build_mesh
from alexnet_dist.parallel.peers import introduce, list_machines
from alexnet_dist.parallel.runtime import Runtime, start_runtime
from alexnet_dist.settings.checks import TWO_TOWERS
from alexnet_dist.settings.schema import Config, ParallelConfig, TrainConfig
from common.report import write_json
from common.subject import TrainerStep, build_network, make_batch, pick_spec
from common.timing import interleave
from common.traffic import Traffic, count_gradient_bytes, predict_traffic

ARMS = {
    "ddp_fp32": ParallelConfig(),
    "ddp_bf16": ParallelConfig(gradient_compression="bf16"),
    "towers": ParallelConfig(strategy="towers"),
    "hybrid": ParallelConfig(strategy="hybrid"),
    "hybrid_batch_by_batch": ParallelConfig(strategy="hybrid", hybrid_schedule="batch_by_batch"),
    "hybrid_bf16": ParallelConfig(strategy="hybrid", gradient_compression="bf16"),
}
ALONE = "one_process"
PROBE, PROBE_SECONDS = "probe", 1.0
SETTINGS = Config(train=TrainConfig(max_steps=1))  # doctor's without a configuration


@dataclass(eq=False)
class Arm:
    """A strategy ready to train.

    Args:
        step: makes an update.
        forward: the replicated network.
        wire: between the parts of the network, None where it is whole.
        predicted: what an update sends, in closed form.
        strategy: for the cost model.
    """

    step: Callable[[], None]
    forward: nn.Module
    wire: Wire | None
    predicted: Traffic
    strategy: Strategy

    def count(self) -> float:
        """Bytes that this process has sent for activations so far."""
        return self.wire.bytes_sent if self.wire is not None else 0


def main() -> int:
    """Measure every arm; the exit code."""
    options = parse_options()
    tune_allocator()  # as every verb does
    runtime = start_runtime("auto", options.precision)
    spec = pick_spec(options.variant, options.tiny)
    names = list(ARMS)[:4] if options.few else list(ARMS)
    names = [name for name in names if options.variant in TWO_TOWERS or name != "towers"]
    arms = {name: build_arm(ARMS[name], spec, options) for name in names}
    windows = {name: build_window(arm.step, runtime, options.steps) for name, arm in arms.items()}
    probe, estimated = build_probe(arms, spec, runtime, options)
    if options.alone:
        windows[ALONE] = build_window(build_alone(spec, runtime, options), runtime, options.steps)
    for window in windows.values():  # DDP makes its final buckets after the first update
        window()
    seconds = interleave({PROBE: probe, **windows}, options.rounds)
    del seconds[PROBE]
    traffic = {name: count_traffic(arm, runtime) for name, arm in arms.items()}
    if runtime.is_main:
        facts = {"device": runtime.device.type, "precision": runtime.precision, "world_size": runtime.world_size}
        write_json(options.out, {**facts, "seconds": seconds, "estimated": estimated, "traffic": traffic})
    runtime.close()
    return 0


def parse_options() -> argparse.Namespace:
    """What `parallel.py` asks for."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--variant", required=True)
    parser.add_argument("--precision", required=True)
    parser.add_argument("--images", type=int, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--alone", action="store_true")
    parser.add_argument("--few", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    return parser.parse_args()


def build_arm(parallel: ParallelConfig, spec: AlexNetSpec, options: argparse.Namespace) -> Arm:
    """A strategy's network, cut and replicated, with a batch of as many images as the strategy gives a replica."""
    runtime = start_runtime("auto", options.precision, strategy=parallel.strategy, shard_size=parallel.shard_size)
    model = build_model(spec, seed=0)
    partition = cut_network(parallel, model, runtime)
    place_model(model, runtime, channels_last=True)
    forward = replicate_network(parallel, model, partition, compiled=False, accumulates=False, runtime=runtime)
    size = options.images * runtime.world_size // runtime.dp_size
    batch = make_batch(size, spec, runtime.device, channels_last=True)
    trainer = TrainerStep(runtime, forward.train(), size)
    strategy = Strategy(
        parallel.strategy,
        gradient_bytes=4 if parallel.gradient_compression is None else 2,
        exchange_bytes=4 if runtime.precision == "fp32" else 2,
    )
    predicted = predict_traffic(spec, strategy, runtime.world_size, options.images)
    return Arm(lambda: trainer(batch), forward, partition.wire, predicted, strategy)


def build_probe(
    arms: Mapping[str, Arm], spec: AlexNetSpec, runtime: Runtime, options: argparse.Namespace
) -> tuple[Callable[[], float], dict[str, list[float]]]:
    """A window in which the links and the computing are measured as `doctor` does, and what `estimate` makes of it.

    The speed of a shared machine changes by the minute, so what is predicted rests on the same round's measurement.
    """
    network, activation_bytes = measure_network(spec), 4 if runtime.precision == "fp32" else 2
    machines = list_machines(introduce(runtime))
    # The model knows no other schedule.
    known = {name: arm for name, arm in arms.items() if ARMS[name].hybrid_schedule == "at_once"}
    estimated: dict[str, list[float]] = {name: [] for name in known}

    seconds = 0.1 if options.tiny else PROBE_SECONDS

    def window() -> float:
        began = time.perf_counter()
        probes = probe_links(runtime.device, machines, seconds)
        links = links_from_probe(probes, max(map(len, machines)))
        compute = measure_compute(runtime, SETTINGS, spec, options.images, seconds)
        for name, arm in known.items():
            predicted = predict(
                network, arm.strategy, runtime.world_size, options.images, compute, links, activation_bytes
            )
            estimated[name].append(predicted.step_seconds)
        return time.perf_counter() - began

    return window, estimated


def build_alone(spec: AlexNetSpec, runtime: Runtime, options: argparse.Namespace) -> Callable[[], None]:
    """The whole batch in the main process, with all cores, while the others wait."""
    if not runtime.is_main:
        return lambda: None
    alone = replace(runtime, mesh=build_mesh(0, 1), host_group=None)
    size = options.images * runtime.world_size
    trainer = TrainerStep(alone, build_network(spec, alone, channels_last=True), size)
    batch = make_batch(size, spec, alone.device, channels_last=True)

    def step() -> None:
        threads = torch.get_num_threads()
        torch.set_num_threads(available_cores())
        trainer(batch)
        torch.set_num_threads(threads)

    return step


def build_window(step: Callable[[], None], runtime: Runtime, num_steps: int) -> Callable[[], float]:
    """Seconds of an update, from when all processes begin to when the last has ended."""

    def window() -> float:
        runtime.agree(0)
        began = time.perf_counter()
        for _ in range(num_steps):
            step()
        if runtime.device.type == "cuda":
            torch.cuda.synchronize()
        return max(runtime.gather(time.perf_counter() - began)) / num_steps

    return window


def count_traffic(arm: Arm, runtime: Runtime) -> dict[str, float | None]:
    """Megabytes that one process sends for an update: counted at the collectives, on the cable, in closed form."""
    runtime.agree(0)
    sent, cable = arm.count(), read_cable()
    arm.step()
    runtime.agree(0)
    counted = Traffic(arm.count() - sent, count_gradient_bytes(arm.forward))
    on_cable = read_cable()
    return {
        "mb_activations": counted.activations / 1e6,
        "mb_gradients": counted.gradients / 1e6,
        "mb_counted": counted.total / 1e6,
        "mb_closed_form": arm.predicted.total / 1e6,
        "mb_on_cable": (on_cable - cable) / 1e6 if on_cable is not None and cable is not None else None,
    }


def read_cable() -> int | None:
    """Bytes sent through this machine's end of the cable; None where processes talk within a machine."""
    counter = Path("/sys/class/net") / os.environ.get("GLOO_SOCKET_IFNAME", "lo") / "statistics" / "tx_bytes"
    return int(counter.read_text()) if "lo" not in counter.parts and counter.is_file() else None


if __name__ == "__main__":
    sys.exit(main())
