"""What a run computes in, and that torch does so: float32 is never rounded to TF32 unless that was asked for."""

from __future__ import annotations

import os

import torch

from alexnet_dist.base.errors import MachineError, UsageError

MIXED_PRECISION = {"fp32": "no", "tf32": "no", "bf16": "bf16", "fp16": "fp16"}  # Accelerate's words
TF32_CAPABILITY = (8, 0)  # of the first GPUs that have it (A100)


def choose_precision(requested: str, on_gpu: bool) -> tuple[str, str]:
    """The precision to compute in, and the reason.

    Raises:
        MachineError: fp16 or tf32 without CUDA, or tf32 on a GPU that has none.
    """
    if requested in ("fp16", "tf32") and not on_gpu:
        raise MachineError(
            f"{requested} needs a CUDA device", why="there is none", remedy="set --precision bf16 or fp32"
        )
    if requested == "tf32" and torch.cuda.get_device_capability() < TF32_CAPABILITY:
        raise MachineError("this GPU has no TF32", why="the first with it is the A100", remedy="set --precision fp32")
    if requested != "auto":
        return requested, "asked for"
    if on_gpu:
        return ("bf16", "CUDA") if torch.cuda.is_bf16_supported() else ("fp32", "this GPU has no bf16")
    if torch.cpu._is_amx_tile_supported():
        return "bf16", "this CPU has AMX"
    if torch.cpu._is_avx512_bf16_supported():
        return "fp32", "this CPU has no AMX; its AVX-512 computes in bf16, too: --precision bf16"
    return "fp32", "this CPU has no AMX"


def computes_bf16(on_gpu: bool) -> bool:
    """Whether the device has a unit that multiplies matrices in bf16."""
    if on_gpu:
        return bool(torch.cuda.is_bf16_supported())
    return torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported()


def check_launcher_precision(chosen: str) -> None:
    """Refuse a launcher's --mixed_precision that contradicts the setting.

    Raises:
        UsageError: it does.
    """
    launcher = os.environ.get("ACCELERATE_MIXED_PRECISION", "").lower() or "no"
    if launcher not in ("no", MIXED_PRECISION[chosen]):
        raise UsageError(
            f"the launcher's --mixed_precision {launcher} and precision {chosen} differ",
            remedy="leave --mixed_precision out"
            + (f" or set --precision {launcher}" if launcher in MIXED_PRECISION else ""),
        )


def settle_float32(precision: str, on_gpu: bool) -> None:
    """Say to torch how it multiplies float32 on a GPU: exactly, or, for tf32 alone, with factors of 10 bits.

    PyTorch's own default is TF32 for convolutions, and TORCH_ALLOW_TF32_CUBLAS_OVERRIDE makes it so for matrices.

    Args:
        precision: as chosen.
        on_gpu: whether the network lives on one.

    Raises:
        MachineError: NVIDIA_TF32_OVERRIDE, which NVIDIA's libraries obey whatever torch says, contradicts it.
    """
    override, wanted = os.environ.get("NVIDIA_TF32_OVERRIDE", ""), precision == "tf32"
    if on_gpu and override and precision in ("fp32", "tf32") and (override != "0") != wanted:
        other = "fp32" if wanted else "tf32"
        why = f"NVIDIA's libraries obey it, and precision is {precision}"
        remedy = f"unset NVIDIA_TF32_OVERRIDE, or set --precision {other}"
        raise MachineError(f"NVIDIA_TF32_OVERRIDE is {override}", where="environment", why=why, remedy=remedy)
    # The switches of torch before 2.9 go first: others, torch.compile among them, read these, and setting one forgets
    # what was said for its operations. What they left open is then said once for all of cuDNN's.
    torch.backends.cudnn.allow_tf32 = wanted
    torch.backends.cuda.matmul.allow_tf32 = wanted
    torch.backends.cudnn.fp32_precision = "tf32" if wanted else "ieee"
