"""Processes, device and precision of a run: the only file that builds an Accelerator.

Accelerate gives launch, device, precision and `backward`. The DDP wrap, the loaders, the schedule, the metrics, their
mirrors and the checkpoints are ours, because its versions go wrong once processes are more than plain replicas.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np
import torch
import torch.distributed as dist
from accelerate import Accelerator, DistributedType
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import GradientAccumulationPlugin
from torch import Tensor
from torch.optim import Optimizer

from alexnet_dist.base.errors import AlexNetDistError, MachineError
from alexnet_dist.base.exhaustion import explain_exhaustion
from alexnet_dist.base.machine import share_of_cores
from alexnet_dist.base.ranks import (
    local_world_size_from_environment,
    rank_from_environment,
    world_size_from_environment,
)
from alexnet_dist.base.spans import COMMUNICATION, span
from alexnet_dist.parallel.mesh import Mesh, build_mesh
from alexnet_dist.parallel.precision import (
    MIXED_PRECISION,
    check_launcher_precision,
    choose_precision,
    settle_float32,
)
from alexnet_dist.parallel.processes.environment import check_environment, is_cpu_wanted
from alexnet_dist.parallel.processes.guard import check_process_count, was_launched
from alexnet_dist.parallel.processes.meeting import meeting_named
from alexnet_dist.parallel.processes.pulse import Pulse, lost_contact
from alexnet_dist.parallel.processes.restart import join_restarted_group
from alexnet_dist.parallel.processes.waiting import JOIN_SECONDS, limit_wait

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Runtime:
    """One process among those that train together.

    Args:
        accelerator: Accelerate's view of it.
        device: where the network lives.
        mesh: this process's place among the others.
        processes_here: processes on this machine.
        precision: fp32, tf32, bf16 or fp16.
        precision_reason: why that one.
        host_group: processes as a group that exchanges host memory (gloo), None for one process.
    """

    accelerator: Accelerator
    device: torch.device
    mesh: Mesh
    processes_here: int
    precision: str
    precision_reason: str
    host_group: dist.ProcessGroup | None

    @property
    def rank(self) -> int:
        """This process's number."""
        return self.mesh.rank

    @property
    def world_size(self) -> int:
        """Processes in the job."""
        return self.mesh.world_size

    @property
    def dp_rank(self) -> int:
        """Which share of a batch this process gets."""
        return self.mesh.dp_rank

    @property
    def dp_size(self) -> int:
        """Shares of a batch."""
        return self.mesh.dp_size

    @property
    def is_main(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def autocast(self) -> AbstractContextManager[None]:
        """Mixed precision for a forward pass."""
        return self.accelerator.autocast()  # type: ignore[no-any-return]

    def backward(self, loss: Tensor) -> None:
        """Backward, with the loss scaled under fp16. Accelerate would divide it by 1 first."""
        scaler = self.scaler
        (loss if scaler is None else scaler.scale(loss)).backward()  # type: ignore[no-untyped-call]

    def update(self, optimizer: Optimizer, blocked: Tensor) -> None:
        """One optimizer step; none if `blocked` (a device scalar) is 1. Never waits for the device.

        fp16 also leaves out an update whose gradients overflowed, and lowers the loss scale.
        """
        scaler = self.scaler
        if scaler is not None:
            self._agree_on_overflow(scaler, optimizer)
            scaler.step(optimizer)
            scaler.update()
            return
        # Torch's fused optimizers and our own read this attribute on the device; GradScaler sets the same one.
        optimizer.found_inf = blocked  # type: ignore[attr-defined]
        optimizer.step()

    def _agree_on_overflow(self, scaler: torch.amp.GradScaler, optimizer: Optimizer) -> None:
        """An overflow in one part of the network blocks the update of all parts."""
        if self.mesh.part_group is None:
            return
        scaler.unscale_(optimizer)
        for found_inf in scaler._found_inf_per_device(optimizer).values():
            dist.all_reduce(found_inf, dist.ReduceOp.MAX, group=self.mesh.part_group)

    @property
    def scaler(self) -> torch.amp.GradScaler | None:
        """The loss scaler of fp16."""
        return self.accelerator.scaler  # type: ignore[no-any-return]

    def sum_over_replicas(self, values: Tensor) -> Tensor:
        """Sum a device tensor over the replicas, in place."""
        return self.begin_sum_over_replicas(values)()

    def begin_sum_over_replicas(self, values: Tensor) -> Callable[[], Tensor]:
        """Begin to sum a device tensor over the replicas, in place; all of them begin at the same point.

        Returns:
            What waits for the sum and gives it: on a GPU the current stream waits, and not the host. Who gives up
            before that drops it: the group ends the sum by itself, or notices that another process is gone.
        """
        group = self.mesh.dp_group
        work = None if group is None else dist.all_reduce(values, group=group, async_op=True)

        def end() -> Tensor:
            if work is not None:
                with span(COMMUNICATION):
                    work.wait()
            return values

        return end

    def sum_over_parts(self, values: Tensor) -> Tensor:
        """Sum a device tensor over the processes that hold one network together, in place."""
        if self.mesh.part_group is not None:
            with span(COMMUNICATION):
                dist.all_reduce(values, group=self.mesh.part_group)
        return values

    def count_once(self, count: int) -> int:
        """A number of images, or 0 where another process has counted the same ones: two towers share a batch."""
        return count if self.mesh.tower_rank == 0 else 0

    def agree(self, *counts: int) -> list[int]:
        """Sums of some integers over all processes, through host memory: the device is not waited for."""
        if self.host_group is None:
            return list(counts)
        sums = torch.tensor(counts, dtype=torch.int64)
        with span(COMMUNICATION):
            dist.all_reduce(sums, group=self.host_group)
        return [int(value) for value in sums]

    def sum_on_host(self, values: Tensor) -> Tensor:
        """Sum a host tensor over all processes, in place."""
        if self.host_group is not None:
            dist.all_reduce(values, group=self.host_group)
        return values

    def gather(self, value: T) -> list[T]:
        """One value of every process, in order of rank."""
        if self.host_group is None:
            return [value]
        values: list[Any] = [None] * self.world_size
        dist.all_gather_object(values, value, group=self.host_group)
        return values

    def on_main(self, action: Callable[[], T]) -> T:
        """Run `action` in the main process and give every process its result, or its error."""
        result: list[Any] = [None, None]
        if self.is_main:
            try:
                result[0] = action()
            except AlexNetDistError as error:
                error.is_shared = True
                result[1] = error
        if self.host_group is not None:
            dist.broadcast_object_list(result, src=0, group=self.host_group)
        if result[1] is not None:
            raise result[1]
        return result[0]  # type: ignore[no-any-return]

    def main_first(self, action: Callable[[], T]) -> T:
        """Run `action` in the main process, then in the others, which find what it left in caches.

        Its error in the main process is every process's error.
        """
        mine: list[T] = []
        self.on_main(lambda: mine.append(action()))
        return mine[0] if mine else action()

    def raise_together(self, error: AlexNetDistError | None) -> None:
        """Raise the first process's error in every process, so that all end alike and one of them speaks."""
        for found in self.gather(error):
            if found is not None:
                found.is_shared = True
                raise found

    def seed_dropout(self, seed: int, step: int) -> None:
        """Give the device's generator a state that depends on (seed, step, replica, tower) alone."""
        state = np.random.SeedSequence([seed, step, self.mesh.dp_rank, self.mesh.tower_rank]).generate_state(
            1, np.uint64
        )
        generator = torch.cuda if self.device.type == "cuda" else torch.default_generator
        generator.manual_seed(int(state[0] >> np.uint64(1)))

    def renew(self) -> Runtime:
        """This process for another run: what Accelerate keeps of one, such as the loss scale of fp16, begins anew."""
        return replace(self, accelerator=build_accelerator(self.device.type == "cpu", self.precision))

    def alone(self) -> Runtime:
        """This process by itself: nothing that it does then waits for another one."""
        return replace(self, mesh=build_mesh(0, 1), processes_here=1, host_group=None)

    def close(self) -> None:
        """Leave the process group."""
        if dist.is_initialized():
            dist.destroy_process_group()


def start_runtime(
    device: str,
    precision: str,
    *,
    precision_reason: str = "",
    strategy: str = "ddp",
    shard_size: int | None = None,
    wait_seconds: float = JOIN_SECONDS,
) -> Runtime:
    """Join the other processes and settle device and precision.

    Args:
        device: auto, cpu or cuda.
        precision: auto, fp32, tf32, bf16 or fp16.
        precision_reason: why that one, where it was not asked for.
        strategy: ddp, towers or hybrid.
        shard_size: processes over which hybrid spreads fc6 and fc7; None = all.
        wait_seconds: for the other processes to come; without them this process then ends with exit code 5.

    Raises:
        UsageError: the launcher was told another precision, or the strategy cannot use so many processes.
        MachineError: no CUDA where it was asked for, a launcher that did not start what it was asked for, processes
            that cannot meet, or an environment that computes otherwise.
    """
    check_environment()
    if device == "cuda" and is_cpu_wanted():
        raise MachineError("device is cuda and the environment's ACCELERATE_USE_CPU is set", remedy="unset one of them")
    if device == "cuda" and not torch.cuda.is_available():
        raise MachineError("no CUDA device", why="device is cuda", remedy="set --device cpu or auto")
    on_gpu = device != "cpu" and torch.cuda.is_available() and not is_cpu_wanted()
    chosen, reason = choose_precision(precision, on_gpu)
    check_launcher_precision(chosen)
    settle_float32(chosen, on_gpu)
    # One process is told where to compute: Accelerate knows further devices, which nothing here was tried on. Several
    # without a GPU are told only where their user chose the CPU: else each would be alone, which is found out below.
    on_cpu = device == "cpu" or is_cpu_wanted() or (not on_gpu and world_size_from_environment() == 1)
    with limit_wait(wait_seconds), meeting_named():
        join_restarted_group(on_gpu)
        accelerator = build_accelerator(on_cpu, chosen)
        world_size = accelerator.num_processes
        check_process_count(world_size)
        mesh = build_mesh(accelerator.process_index, world_size, strategy, shard_size)
        host_group = _join_host_group(world_size)
    processes_here = local_world_size_from_environment()
    if accelerator.device.type == "cpu" and was_launched():
        # accelerate and torchrun set OMP_NUM_THREADS=1, which would leave cores idle.
        torch.set_num_threads(share_of_cores(processes_here))
    return Runtime(
        accelerator=accelerator,
        device=accelerator.device,
        mesh=mesh,
        processes_here=processes_here,
        precision=chosen,
        precision_reason=precision_reason or reason,
        host_group=host_group,
    )


def build_accelerator(on_cpu: bool, precision: str) -> Accelerator:
    """An Accelerator that takes nothing from the environment but who the processes are.

    Args:
        on_cpu: keep off the GPUs.
        precision: fp32, tf32, bf16 or fp16.

    Raises:
        MachineError: it chose something else, as a variable that we do not know may ask for.
    """
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="OMP_NUM_THREADS")  # `start_runtime` counts the threads itself
        accelerator = Accelerator(
            cpu=on_cpu,
            mixed_precision=MIXED_PRECISION[precision],
            dynamo_backend="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
    kind, device = accelerator.distributed_type, accelerator.device.type
    is_ours = kind in (DistributedType.NO, DistributedType.MULTI_CPU, DistributedType.MULTI_GPU)
    if not is_ours or device not in ("cpu", "cuda") or accelerator.gradient_accumulation_steps != 1:
        raise MachineError(
            f"Accelerate chose {kind.value} on {device}",
            why="only plain processes on CPUs or CUDA devices compute what the settings say",
            remedy="unset the ACCELERATE_ variables that ask for it, or set --device cpu",
        )
    return accelerator


def share_first(make: Callable[[], T], world_size: int) -> T:
    """What rank 0 makes, where a program has joined so many processes by itself; else what this process makes.

    Raises:
        Exception: what making it has raised, in each process.
    """
    if world_size == 1 or not dist.is_initialized() or dist.get_world_size() != world_size:
        return make()
    made: list[Any] = [None, None]  # the value, or the error
    if dist.get_rank() == 0:
        try:
            made[0] = make()
        except Exception as error:  # noqa: BLE001 (the others wait for it)
            made[1] = error
    dist.broadcast_object_list(made, src=0)
    if made[1] is not None:
        raise made[1]
    value: T = made[0]
    return value


@contextmanager
def fresh_accelerate() -> Iterator[None]:
    """Within, Accelerate begins anew; afterwards it is as it was before.

    It keeps one device and one precision for a whole process, and a program may train twice, or use it by itself.
    """
    states = (PartialState, AcceleratorState, GradientState)
    kept = [dict(state._shared_state) for state in states]
    for state in states:
        state._shared_state.clear()
    try:
        yield
    finally:
        for state, values in zip(states, kept, strict=True):
            state._shared_state.clear()
            state._shared_state.update(values)


def _join_host_group(world_size: int) -> dist.ProcessGroup | None:
    if world_size == 1:
        return None
    group = dist.group.WORLD if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")
    return cast(dist.ProcessGroup, group)


@contextmanager
def lost_peers_named() -> Iterator[None]:
    """Turn the many words of a broken collective into one line that names who is gone, where that can be known.

    Raises:
        MachineError: another process went away.
    """
    # The process group itself may be left when an error is looked at: `closing` comes first.
    is_alone, is_done = world_size_from_environment() == 1, False
    pulse = Pulse()
    if not is_alone:
        pulse.start()
    try:
        yield
        is_done = True
    except AlexNetDistError as error:
        _settle_speaker(error, pulse)
        raise
    except (dist.DistError, RuntimeError, MemoryError, OSError) as error:
        text = str(error)
        signs = ("Connection closed by peer", "Connection reset", "Socket closed", "gloo", "NCCL", "Broken pipe")
        if explain_exhaustion(error) is not None:  # the frame around the verb knows what to do about it
            error.is_said = not pulse.claim_speech(True)  # type: ignore[union-attr]
            raise
        if is_alone or not any(s in text for s in signs):
            raise
        who, is_speaker = ("another process", False) if pulse.is_said() else pulse.name_lost()
        lost = lost_contact(who, "it ended or was killed")
        lost.is_said = pulse.is_said()
        lost.is_local = is_speaker and not lost.is_said
        raise lost from error
    finally:
        pulse.stop(is_done)


def _settle_speaker(error: AlexNetDistError, pulse: Pulse) -> None:
    """Of processes that end by errors of their own the first one speaks; what all have together is said by rank 0."""
    if not error.is_shared:
        error.is_local = pulse.claim_speech(error.is_local or rank_from_environment() == 0)
        error.is_said = not error.is_local
