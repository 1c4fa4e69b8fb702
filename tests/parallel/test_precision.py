"""What a run computes in: what is chosen, and what torch and the environment are held to."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from alexnet_dist.base.errors import MachineError, UsageError
from alexnet_dist.parallel.precision import check_launcher_precision, choose_precision, settle_float32
from alexnet_dist.parallel.runtime import start_runtime


@pytest.fixture(autouse=True)
def torchs_switches() -> Iterator[None]:
    """PyTorch's own default, and afterwards what every other test has."""
    torch.backends.cudnn.allow_tf32 = True
    torch.backends.cuda.matmul.allow_tf32 = False
    yield
    settle_float32("fp32", on_gpu=False)


@pytest.mark.parametrize(
    ("amx", "avx512_bf16", "precision", "reason"),
    [
        (True, True, "bf16", "this CPU has AMX"),
        (False, True, "fp32", "this CPU has no AMX; its AVX-512 computes in bf16, too: --precision bf16"),
        (False, False, "fp32", "this CPU has no AMX"),
    ],
)
def test_a_cpu_computes_in_bf16_by_itself_only_with_amx(
    monkeypatch: pytest.MonkeyPatch, amx: bool, avx512_bf16: bool, precision: str, reason: str
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512_bf16)
    assert choose_precision("auto", on_gpu=False) == (precision, reason)
    assert choose_precision("bf16", on_gpu=False) == ("bf16", "asked for")


def is_rounded() -> tuple[bool, ...]:
    """Whether float32 is multiplied in TF32: convolutions and matrices, by the old switches and by the new ones."""
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    new = (cudnn.conv.fp32_precision, cudnn.rnn.fp32_precision, matmul.fp32_precision)
    return (cudnn.allow_tf32, matmul.allow_tf32, *(name == "tf32" for name in new))


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16", "tf32"])
@pytest.mark.parametrize("before", [True, False])
def test_float32_is_rounded_where_that_was_asked_for_alone(precision: str, before: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = before  # as TORCH_ALLOW_TF32_CUBLAS_OVERRIDE does
    assert is_rounded()[0], "PyTorch's default rounds convolutions"
    settle_float32(precision, on_gpu=False)
    assert is_rounded() == (precision == "tf32",) * 5


def test_every_run_settles_it() -> None:
    start_runtime("cpu", "fp32").close()
    assert is_rounded() == (False,) * 5


@pytest.mark.parametrize("precision", ["tf32", "fp16"])
def test_what_needs_a_gpu_says_so(precision: str) -> None:
    with pytest.raises(MachineError, match=f"{precision} needs a CUDA device"):
        choose_precision(precision, on_gpu=False)


def test_a_gpu_before_tf32_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (7, 5))
    with pytest.raises(MachineError, match="this GPU has no TF32"):
        choose_precision("tf32", on_gpu=True)


@pytest.mark.parametrize(
    ("override", "precision", "on_gpu", "is_refused"),
    [
        ("1", "fp32", True, True),
        ("0", "tf32", True, True),
        ("0", "fp32", True, False),
        ("1", "tf32", True, False),
        ("1", "bf16", True, False),
        ("1", "fp32", False, False),
        ("", "tf32", True, False),
    ],
)
def test_nvidias_own_switch_may_not_contradict(
    monkeypatch: pytest.MonkeyPatch, override: str, precision: str, on_gpu: bool, is_refused: bool
) -> None:
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", override)
    if is_refused:
        with pytest.raises(MachineError, match=f"NVIDIA_TF32_OVERRIDE is {override}.*unset"):
            settle_float32(precision, on_gpu)
    else:
        settle_float32(precision, on_gpu)


@pytest.mark.parametrize(
    ("launcher", "remedy"), [("bf16", " or set --precision bf16"), ("fp8", ""), ("", None), ("no", None), ("NO", None)]
)
def test_a_launchers_precision_is_refused_with_a_remedy_that_works(
    monkeypatch: pytest.MonkeyPatch, launcher: str, remedy: str | None
) -> None:
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", launcher)
    if remedy is None:
        check_launcher_precision("fp32")
        return
    with pytest.raises(UsageError, match=f"{launcher} and precision fp32 differ; leave --mixed_precision out{remedy}$"):
        check_launcher_precision("fp32")
