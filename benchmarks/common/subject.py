"""What is measured: the networks, batches in memory, and the trainer's own step."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from alexnet_dist.assembly.kernels import Kernels, Subject, apply_kernels, choose_kernels
from alexnet_dist.assembly.learning import build_rule, build_schedule, use_shadows
from alexnet_dist.assembly.loaders import place_model
from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.machine import can_build_kernels
from alexnet_dist.data.engines.loader import Batch
from alexnet_dist.models import AlexNetSpec, build_model, make_spec
from alexnet_dist.parallel.runtime import Runtime
from alexnet_dist.settings.schema import KernelsConfig, OptimizerConfig, ScheduleConfig
from alexnet_dist.training.flat_update import FlatSGD
from alexnet_dist.training.gate import BatchGate
from alexnet_dist.training.graph import WARM_UP, CudaRecorder, Recorder, StepGraph
from alexnet_dist.training.optim import place_rates, set_lr
from alexnet_dist.training.schedule import PlateauState, Schedule
from alexnet_dist.training.step import DeviceCounters, train_step

SEED = 0
AS_A_RUN = KernelsConfig()
LOG_STEPS = 10  # the default of log.every_steps
MOMENTUM, WEIGHT_DECAY = OptimizerConfig().momentum, OptimizerConfig().weight_decay
# So small that a batch seen a thousand times is not learned: a network that diverges or whose gradients vanish computes
# at another speed.
LR = 1e-5
TINY: dict[str, Any] = {"image_size": 64, "conv_channels": (8, 8, 8, 8, 8), "fc_width": 16, "num_classes": 10}


def pick_spec(variant: str, tiny: bool, **overrides: Any) -> AlexNetSpec:
    """A variant with 1,000 classes at 224 pixels, or a toy of the same structure."""
    return make_spec(variant, **(TINY if tiny else {}), **overrides)


def build_network(
    spec: AlexNetSpec, runtime: Runtime, channels_last: bool, kernels: KernelsConfig = AS_A_RUN
) -> nn.Module:
    """A network on the device in training mode, computed as a run would; equal specs give equal weights."""
    model = build_model(spec, SEED)
    place_model(model, runtime, channels_last)
    apply_kernels(model, _choose_kernels(spec, runtime.device, runtime.precision, channels_last, kernels), "ddp")
    return model.train()


@functools.cache  # all arms of a benchmark are computed alike
def _choose_kernels(
    spec: AlexNetSpec, device: torch.device, precision: str, channels_last: bool, kernels: KernelsConfig
) -> Kernels:
    return choose_kernels(kernels, Subject(spec, device, precision, channels_last, num_images=256))


def build_sgd(model: nn.Module) -> Optimizer:
    """The project's SGD with its default momentum and decay."""
    update = "flat" if next(model.parameters()).is_cuda and can_build_kernels() else "reference"
    optimizer = build_rule(OptimizerConfig(name="sgd"), model, update=update)
    set_lr(optimizer, LR)
    return optimizer


def make_batch(
    size: int, spec: AlexNetSpec, device: torch.device, channels_last: bool, dtype: torch.dtype = torch.float32
) -> Batch:
    """Noise with labels, as the loader hands batches over: on the device, in the network's layout.

    Args:
        size: images.
        spec: the network.
        device: where they go.
        channels_last: their layout.
        dtype: of the images; a loader gives what autocast would make of them, see `INPUT_DTYPES`.
    """
    generator = torch.Generator().manual_seed(SEED)
    images = torch.randn(size, spec.in_channels, spec.image_size, spec.image_size, generator=generator)  # (B, C, S, S)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    labels = torch.randint(spec.num_classes, (size,), generator=generator)  # (B,)
    return Batch(
        images=images.to(device, dtype, memory_format=layout),
        labels=labels.to(device),
        mask=torch.ones(size, device=device),
        ids=torch.arange(size),
        num_images=size,
        bad_files=[],
    )


def refuse_to_measure(failure: str) -> None:
    """An eager update is no figure of a graph.

    Raises:
        MachineError: always.
    """
    raise MachineError("the update cannot be captured as a CUDA graph", why=failure)


@dataclass(eq=False)
class TrainerStep:
    """All that `Trainer` does with a batch: gate, learning rate, dropout's seed, step, and the log window's read.

    Only the writing of the log line is left out. With a recorder, updates are replayed after the first ones.
    """

    runtime: Runtime
    model: nn.Module
    batch_size: int
    step: int = 0
    loss_sum: float = 0.0
    recorder: Recorder | None = None
    schedule: Schedule = field(
        default_factory=lambda: build_schedule(ScheduleConfig(name="constant"), LR, 1000, 1_000_000)
    )

    def __post_init__(self) -> None:
        self.optimizer = build_sgd(self.model)
        how: Any = {"compiled": hasattr(self.model, "_orig_mod"), "accumulates": False, "runtime": self.runtime}
        self.model = use_shadows(self.model, self.optimizer, **how)
        self.gate = BatchGate(self.runtime, skip_bad_files=False)
        self.counters = DeviceCounters.on(self.runtime.device)
        self._update: Callable[[Batch, float, Callable[[], None]], None] = self._update_eagerly
        if self.recorder is not None:
            self._update = self._build_graph(self.recorder).update

    def __call__(self, batch: Batch) -> None:
        num_images = self.gate.admit(batch)
        set_lr(self.optimizer, self.schedule.lr(self.step, PlateauState()))
        self._update(batch, self.runtime.dp_size / num_images, partial(self.runtime.seed_dropout, SEED, self.step))
        self.step += 1
        if self.step % LOG_STEPS == 0:
            self._drain()

    def _update_eagerly(self, batch: Batch, scale: float, seed: Callable[[], None]) -> None:
        seed()
        self._make_step(batch, scale)

    def _make_step(self, batch: Batch, scale: float | Tensor) -> None:
        train_step(
            self.runtime,
            self.model,
            self.optimizer,
            batch,
            micro_batch_size=self.batch_size,
            scale=scale,
            counters=self.counters,
            fused_loss=isinstance(self.optimizer, FlatSGD) and self.runtime.scaler is None,
        )

    def _build_graph(self, recorder: Recorder) -> StepGraph:
        return StepGraph(
            self.runtime, recorder, self.model, self.optimizer, self.counters, self._make_step, refuse_to_measure
        )

    def _drain(self) -> None:
        self.loss_sum, _ = self.counters.sums.tolist()
        if not math.isfinite(self.loss_sum):
            raise FloatingPointError("the loss is not finite: no update was made, so the figures mean nothing")
        self.counters.sums.zero_()


def drive_graph(runtime: Runtime, model: nn.Module, batch: Batch) -> Callable[[], None]:
    """The trainer's step on a batch, as one CUDA graph: the updates before its capture are made here.

    Raises:
        MachineError: there is no GPU, or it cannot be captured.
    """
    if runtime.device.type != "cuda":
        raise MachineError("no CUDA device")
    trainer = TrainerStep(runtime, model, len(batch.images), recorder=CudaRecorder(runtime.device))
    place_rates(trainer.optimizer, runtime.device)
    for _ in range(WARM_UP + 1):
        trainer(batch)
    return lambda: trainer(batch)
