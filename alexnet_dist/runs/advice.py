"""Which setting to change where the network, the data loader or the link limits the speed: a list for all verdicts."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Setup:
    """What an advice depends on.

    Args:
        on_gpu: whether the network runs on one.
        processes: that train together.
        engine: data loader backend.
        workers: of it, for each process.
        cores: of the machine, for each process.
        is_cacheable: whether engine cache can carry the recipe out.
        strategy: who holds what.
        precision: in which the network computes.
        computes_bf16: whether the device has a unit for it.
        is_compressed: whether what crosses between processes travels in half of float32's bytes.
        is_compiled: by torch.compile.
    """

    on_gpu: bool = False
    processes: int = 1
    engine: str = "torchvision"
    workers: int = 1
    cores: int = 1
    is_cacheable: bool = True
    strategy: str = "ddp"
    precision: str = "fp32"
    computes_bf16: bool = False
    is_compressed: bool = False
    is_compiled: bool = False


def find_faster_network(setup: Setup) -> str:
    """What computes sooner."""
    if setup.computes_bf16 and setup.precision in ("fp32", "tf32"):
        return "--precision bf16"
    if not setup.on_gpu:
        return "a GPU or more cores"
    return "more GPUs" if setup.is_compiled else "--compile true"


def find_faster_loader(setup: Setup) -> str:
    """What makes batches sooner."""
    if setup.engine != "cache" and setup.is_cacheable:
        return "--data.engine cache"
    if setup.workers < setup.cores:
        return f"--data.workers {setup.cores}"
    return "smaller files, resized once, or more cores"


def find_faster_link(setup: Setup) -> str:
    """What waits less for other processes."""
    if setup.strategy == "ddp":
        compression = "" if setup.is_compressed else " or --parallel.gradient_compression bf16"
        return f"--parallel.strategy hybrid{compression}, which `estimate` compares"
    return "a larger --train.global_batch_size" if setup.is_compressed else "--parallel.exchange bf16"
