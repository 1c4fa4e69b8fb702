"""What limits training, in one sentence, and the setting to change."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Situation:
    """How fast the parts are, and what is set.

    Args:
        loader: images per second of the loader alone.
        network: images per second of the network alone.
        on_gpu: whether they work at the same time; on a CPU they share the cores.
        engine: data.engine.
        workers: decoding processes that training takes.
        cores: of the machine.
        precision: fp32, bf16 or fp16.
        computes_bf16: whether the device multiplies matrices in bf16.
    """

    loader: float
    network: float
    on_gpu: bool
    engine: str
    workers: int
    cores: int
    precision: str
    computes_bf16: bool


def judge(found: Situation) -> str:
    """The sentence."""
    if found.on_gpu:
        what = f"loader {found.loader:,.0f} images/s, network {found.network:,.0f}"
        if found.loader >= found.network:
            return f"The network limits ({what}): {advise_network(found)}."
        return f"The loader limits ({what}): {advise_loader(found)}."
    part = found.network / (found.loader + found.network)  # of the cores' time that goes to the loader
    if part < 0.5:
        return f"The network takes {1 - part:.0%} of the cores' time: {advise_network(found)}."
    return f"The loader takes {part:.0%} of the cores' time: {advise_loader(found)}."


def advise_loader(found: Situation) -> str:
    """What makes batches sooner."""
    if found.engine != "cache":
        return "set --data.engine cache"
    if found.on_gpu and found.workers < found.cores:
        return f"set --data.workers {found.cores}"
    return "take smaller pictures (--augment.resize) or more cores"


def advise_network(found: Situation) -> str:
    """What computes sooner."""
    if found.precision == "fp32" and found.computes_bf16:
        return "set --precision bf16"
    if found.on_gpu:
        return "set --compile true, or --train.global_batch_size higher"
    return "take a GPU, or a CPU that computes in bf16" if not found.computes_bf16 else "take a GPU or more cores"
