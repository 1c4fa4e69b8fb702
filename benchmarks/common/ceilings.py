"""What a device can do at most, measured: products of matrices and copies; and how near a network comes to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from alexnet_dist.models import AlexNetSpec
from alexnet_dist.models.summary import summarize
from common.timing import Protocol, Spread, time_calls

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def count_flops(spec: AlexNetSpec) -> dict[str, int]:
    """Floating-point operations for one image of a forward pass, and of it with the backward pass.

    The backward pass costs twice the forward pass, but nobody needs the gradient of the images.
    """
    rows = summarize(spec)
    forward = sum(row.flops for row in rows)
    first = next(row.flops for row in rows if row.name == "conv1")
    return {"forward": forward, "training": 3 * forward - first}


def measure_ceilings(
    device: torch.device, precisions: tuple[str, ...], protocol: Protocol, tiny: bool
) -> dict[str, float]:
    """FLOP/s of a product of square matrices in each precision, and bytes a second of a copy, read and written."""
    side = 128 if tiny else 8192 if device.type == "cuda" else 2048
    number = 2**16 if tiny else 2**31 if device.type == "cuda" else 2**27
    source, target = (torch.zeros(number, dtype=torch.uint8, device=device) for _ in range(2))
    calls: dict[str, Callable[[], object]] = {"copy": lambda: target.copy_(source)}
    for precision in precisions:
        a, b = (torch.ones(side, side, dtype=DTYPES[precision], device=device) for _ in range(2))
        calls[precision] = lambda a=a, b=b: a @ b
    seconds = {name: Spread.of(values).min for name, values in time_calls(calls, protocol, device).items()}
    amounts = {"copy": 2 * number, **dict.fromkeys(precisions, 2 * side**3)}
    return {name: amounts[name] / seconds[name] for name in seconds}


def percent_of_ceiling(
    ceilings: Mapping[str, float], precision: str, flops: Mapping[str, int], work: str, images_per_second: float
) -> float:
    """Of the FLOP/s of a product of matrices in this precision, those of a network at its work, in per cent."""
    count = flops["forward" if work == "forward" else "training"]
    return 100 * count * images_per_second / ceilings[precision]
