"""Published runs of AlexNet on many devices, and what the cost model says of them.

Speeds are those of the sources; link speeds are what the model was given, and are assumptions: the bus bandwidth that
such links usually reach in an all-reduce.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from alexnet_dist.costs.goodput import DAY, HOUR, Fleet, find_best_interval, find_restart
from alexnet_dist.costs.model import Compute, Link, Links, predict
from alexnet_dist.costs.network_size import NetworkSize, measure_network
from alexnet_dist.costs.transfers import ByteSize, Strategy
from alexnet_dist.models.alexnet import AlexNetSpec

# tf_cnn_benchmarks' AlexNet, which every run below trained or came close to: one tower, no LRN.
BENCHMARK_NETWORK = AlexNetSpec(
    conv_channels=(64, 192, 384, 384, 256), conv_groups=(1,) * 5, conv1_padding=2, lrn=False, lrn_groups=1, init="torch"
)
TOLERANCE = 0.05  # of the speed of one device times their number


@dataclass(frozen=True)
class PublishedRun:
    """A run on many devices.

    Args:
        name: machine and precision.
        devices: in all.
        batch: images per device and step.
        one_device: images per second of one device alone.
        efficiency: images per second over those of `devices` times one device.
        link: bytes per second given to the model: between the devices of a machine, or of each machine where there are
            several.
        per_machine: devices of a machine.
        gradient_bytes: of a gradient on its way.
        source: where the speeds stand.
        is_held: whether the model must have it in its band, within `TOLERANCE`.
        remark: what the model does not know of it.
    """

    name: str
    devices: int
    batch: int
    one_device: float
    efficiency: float
    link: float
    source: str
    is_held: bool
    per_machine: int = 8
    gradient_bytes: ByteSize = 4
    remark: str = ""


LAMBDA = "lambdal/lambda-tensorflow-benchmark@c17619d"
DOCS = "tensorflow docs_src/performance/benchmarks.md"

PUBLISHED = (
    PublishedRun("8 A100-PCIe fp16", 8, 3584, 16487, 0.980, 20e9, LAMBDA, True),
    PublishedRun("8 A100-SXM4 fp16", 8, 3584, 11755, 0.994, 200e9, LAMBDA, True),
    PublishedRun("8 RTX 8000 fp16", 8, 4096, 7135, 0.964, 8e9, LAMBDA, True),
    PublishedRun("8 V100-SXM3 fp16", 8, 3072, 9319, 0.951, 120e9, LAMBDA, True),
    PublishedRun(
        "8 V100-SXM3 fp32", 8, 1536, 5132, 0.874, 120e9, LAMBDA, False, remark="slower than its own fp16 run explains"
    ),
    PublishedRun(
        "8 RTX 3090 fp16", 8, 1920, 9473, 0.436, 2e9, LAMBDA, False, remark="no peer-to-peer; batch size a guess"
    ),
    PublishedRun("8 K80 fp32", 8, 512, 656, 0.884, 5e9, DOCS, False, remark="software of 2017"),
    PublishedRun("8 P100, DGX-1 fp32", 8, 512, 2987, 0.746, 30e9, DOCS, False, remark="software of 2017"),
    PublishedRun(
        "512 V100, GradientFlow fp16",
        512,
        128,
        3297,
        0.801,
        7e9,
        "arXiv 1902.06855",
        False,
        gradient_bytes=2,
        remark="sends a part of the gradients only",
    ),
)


@cache
def _benchmark_network() -> NetworkSize:
    return measure_network(BENCHMARK_NETWORK)


def predict_band(run: PublishedRun) -> tuple[float, float]:
    """Slow and fast end of the efficiency that the model expects: nothing hidden, as much hidden as can be."""
    links = Links(between=Link(run.link), inside=Link(run.link), per_machine=run.per_machine)
    strategy = Strategy("ddp", gradient_bytes=run.gradient_bytes)
    compute = Compute(1 / run.one_device)
    prediction = predict(_benchmark_network(), strategy, run.devices, run.batch, compute, links)
    alone = compute.step_seconds(run.batch)
    return alone / prediction.slowest_seconds, alone / prediction.fastest_seconds


@dataclass(frozen=True)
class PublishedFleet:
    """A long run that was interrupted often. None of them trained AlexNet: nobody did on so many machines.

    Args:
        name: what trained on what.
        machines: of eight devices each.
        interruptions: of the job, expected or not.
        days: in which these were counted.
        goodput: share of the time that trained.
        source: where that stands.
        remark: what the model does not know of it.
    """

    name: str
    machines: int
    interruptions: int
    days: float
    goodput: float
    source: str
    remark: str

    @property
    def fleet(self) -> Fleet:
        """Its machines, with checkpoints that take ten seconds: an assumption, since no source says."""
        failure_hours = self.days * DAY / HOUR * self.machines / self.interruptions
        return Fleet(self.machines, failure_hours, checkpoint_seconds=10.0, restart_seconds=PROMPT_RESTART)


PROMPT_RESTART = 300.0  # seconds: what a launcher takes that starts all processes again by itself

PUBLISHED_FLEETS = (
    PublishedFleet(
        "Llama 3.1 405B, 16,384 H100", 2048, 466, 54, 0.90, "arXiv 2407.21783", '"over 90 %"; restarts by themselves'
    ),
    PublishedFleet(
        "MegaScale, 12,288 GPUs", 1536, 100, 35, 0.90, "arXiv 2402.15627", '"over 90 %", "several weeks": 5 assumed'
    ),
    PublishedFleet("OPT-175B, 992 A100", 124, 105, 60, 0.59, "metaseq's logbook", "35 restarts were made by hand"),
)


def explain_fleet(run: PublishedFleet) -> tuple[float, float]:
    """The goodput that the model expects with prompt restarts, and the seconds of a restart that give the published."""
    return find_best_interval(run.fleet, step_seconds=1.0).mean, find_restart(run.fleet, run.goodput)
