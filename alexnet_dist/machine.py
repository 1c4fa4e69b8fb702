"""What machine this is, and which versions run on it: for run.json and the benchmarks."""

from __future__ import annotations

import ctypes
import os
import platform
import shutil
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

REPORTED_PACKAGES = (
    *("alexnet_dist", "torch", "torchvision", "triton", "accelerate", "numpy", "pillow", "safetensors", "wandb"),
    *("nvidia-dali-cuda120", "nvidia-dali-cuda130"),
)
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3  # of malloc.h: blocks below are not given back to the kernel


def available_cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def can_build_kernels() -> bool:
    """Whether Triton is installed and finds the C compiler that it needs to start its kernels."""
    return find_spec("triton") is not None and any(map(shutil.which, (os.environ.get("CC", "cc"), "gcc", "clang")))


def tune_allocator() -> None:
    """Let PyTorch keep the memory of large tensors, in large pages (Linux, glibc); call it before PyTorch is imported.

    An update allocates and frees hundreds of megabytes for gradients and half-precision weights. Given back to the
    kernel and asked for again, in pages of 4 KiB, they cost a quarter of a CPU's time for an update of 16 images.
    """
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if platform.system() == "Linux" else None
    if mallopt is not None:
        for parameter in (M_TRIM_THRESHOLD, M_MMAP_THRESHOLD):
            mallopt(parameter, 2**31 - 1)


def describe_machine() -> dict[str, Any]:
    """Processor, cores, memory and GPUs. No host name and no path: the text may be published."""
    import torch

    gpus = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    features = _read_line("/proc/cpuinfo", "flags").split()
    matrix_units = [name for name in ("amx_tile", "avx512_bf16", "avx512f", "avx2") if name in features]
    return {
        "system": f"{platform.system()} {platform.machine()}",
        "cpu": _read_line("/proc/cpuinfo", "model name") or platform.processor(),
        "cpu_features": matrix_units,
        "cores": available_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "gpus": gpus,
    }


def list_versions() -> dict[str, str]:
    """Versions of Python and of the packages that a run's numbers depend on."""
    versions = {"python": platform.python_version()}
    for name in REPORTED_PACKAGES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def find_git_commit() -> str | None:
    """The commit of the checkout that the package runs from, with "+" if it was changed; None outside a checkout."""
    here = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=5, check=True
        ).stdout.strip()
        status = subprocess.run(
            ["git", "status", "--porcelain", "--untracked-files=no"],
            cwd=here,
            capture_output=True,
            text=True,
            timeout=5,
        ).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
    return commit + ("+" if status else "")


def _read_line(path: str, key: str) -> str:
    try:
        lines = Path(path).read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
