"""ReLU, normalization and pooling by functions in C, against the layers one after the other."""

from __future__ import annotations

import copy
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from alexnet_dist.base import c_library
from alexnet_dist.base.c_library import load_c_library
from alexnet_dist.base.errors import MachineError
from alexnet_dist.models import LocalResponseNorm, build_model, make_spec, normalization, pooling
from alexnet_dist.models import joined_pooling as joined
from alexnet_dist.models.joined_pooling import SOURCE, JoinedPooling, join_poolings
from alexnet_dist.models.pooling import MaxPooling
from alexnet_dist.models.vectors import take_in_relu

LAYERS = ["relu lrn pool", "lrn pool relu", "lrn pool", "relu pool", "pool relu", "pool"]


def build(layers: str, groups: int = 2) -> nn.Sequential:
    kinds = {
        "relu": nn.ReLU,
        "lrn": lambda: LocalResponseNorm(alpha=0.5, groups=groups),
        "pool": lambda: MaxPooling(3, 2),
    }
    return nn.Sequential(*(kinds[name]() for name in layers.split()))


def join(layers: nn.Sequential) -> nn.Sequential:
    made = copy.deepcopy(layers)
    take_in_relu(made)
    join_poolings(made)
    return made


def make_maps(shape: tuple[int, ...], dtype: torch.dtype, seed: int = 0) -> Tensor:
    """Of a size at which the normalization does something; many are equal."""
    made = torch.randn(shape, generator=torch.Generator().manual_seed(seed)) * 4
    return made.mul(4).round().div(4).to(dtype).contiguous(memory_format=torch.channels_last)


def forward_and_gradient(layers: nn.Module, maps: Tensor, seed: int = 1) -> tuple[Tensor, Tensor]:
    leaf = maps.detach().requires_grad_()
    output = layers(leaf)
    (gradient,) = torch.autograd.grad(output, leaf, make_maps(output.shape, maps.dtype, seed))
    return output.detach(), gradient


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the functions in C that were called."""
    names: list[str] = []
    run = joined._run

    def note(name: str, *args: object) -> None:
        names.append(name)
        run(name, *args)  # type: ignore[arg-type]

    monkeypatch.setattr(joined, "_run", note)
    return names


@pytest.mark.parametrize("layers", LAYERS)
@pytest.mark.parametrize(
    ("shape", "groups"),
    [((3, 16, 9, 7), 2), ((2, 96, 6, 8), 2), ((1, 6, 3, 4), 2), ((2, 40, 5, 3), 1), ((5, 3, 4, 11), 3)],
    ids=["odd", "even", "narrow", "one_group", "one_channel_a_group"],
)
def test_gives_what_the_layers_give(layers: str, shape: tuple[int, ...], groups: int, calls: list[str]) -> None:
    """In float32 to some last bits; bf16 is rounded where they round it, and differs where such a bit decides."""
    plain = build(layers, groups)
    for dtype, tolerance, differing in ((torch.float32, 2e-6, 1.0), (torch.bfloat16, 2**-7, 0.01)):
        maps = make_maps(shape, dtype)
        expected, made = forward_and_gradient(plain, maps), forward_and_gradient(join(plain), maps)
        for a, b in zip(expected, made, strict=True):
            assert (a.dtype, a.shape) == (b.dtype, b.shape)
            assert b.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(b, a, rtol=tolerance, atol=tolerance)
            assert (a != b).float().mean() <= differing
            assert "lrn" in layers or torch.equal(a, b)
    assert calls == ["join_forward", "join_backward"] * 2


@pytest.mark.parametrize("layers", ["relu lrn pool", "lrn pool relu", "pool relu"])
@pytest.mark.parametrize("odd", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_goes_where_the_layers_send_it(layers: str, odd: float) -> None:
    maps = make_maps((2, 8, 9, 9), torch.float32)
    maps[0, 3, 4, 4] = odd
    maps[1, :, :3, :3] = odd
    plain = build(layers)
    for a, b in zip(forward_and_gradient(plain, maps), forward_and_gradient(join(plain), maps), strict=True):
        torch.testing.assert_close(b, a, rtol=2e-6, atol=2e-6, equal_nan=True)


def test_threads_and_images_beside_it_change_no_bit() -> None:
    layers, maps, threads = (
        join(build("relu lrn pool")),
        make_maps((9, 16, 13, 13), torch.bfloat16),
        torch.get_num_threads(),
    )
    together = forward_and_gradient(layers, maps)
    leaf = maps[4:5].detach().requires_grad_()
    output = layers(leaf)
    grad = make_maps(together[0].shape, torch.bfloat16, seed=1)[4:5]
    assert torch.equal(output, together[0][4:5])
    assert torch.equal(torch.autograd.grad(output, leaf, grad)[0], together[1][4:5])
    try:
        torch.set_num_threads(3 - min(threads, 2))
        assert all(map(torch.equal, together, forward_and_gradient(layers, maps)))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow  # a child
def test_a_forked_child_has_threads_of_its_own() -> None:
    layers, maps, threads = join(build("pool")), make_maps((9, 16, 13, 13), torch.bfloat16), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        layers(maps)
        child = os.fork()
        if child == 0:
            signal.alarm(30)  # in place of a wait without end
            layers(maps)
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("case", ["float64", "float16", "nchw", "empty", "small window", "other beta", "other pooling"])
def test_maps_that_do_not_fit_are_left_to_the_layers(case: str, calls: list[str]) -> None:
    types = {"float64": torch.float64, "float16": torch.float16}
    maps = make_maps((0 if case == "empty" else 2, 8, 9, 9), types.get(case, torch.float32))
    maps = maps.contiguous() if case == "nchw" else maps
    norms = {"small window": LocalResponseNorm(size=3), "other beta": LocalResponseNorm(beta=0.6)}
    pool = MaxPooling(2, 2) if case == "other pooling" else MaxPooling(3, 2)
    layers = nn.Sequential(norms.get(case, LocalResponseNorm(groups=2)), pool)
    expected, made = forward_and_gradient(layers, maps), forward_and_gradient(join(layers), maps)
    assert all(map(torch.equal, expected, made))
    assert not calls


def test_maps_without_memory_are_left_to_the_layers(calls: list[str]) -> None:
    with FakeTensorMode():
        maps = torch.empty(2, 8, 9, 9).to(memory_format=torch.channels_last)
        assert join(build("relu lrn pool"))(maps).shape == (2, 8, 4, 4)
    assert not calls


@pytest.mark.parametrize("layers", ["relu lrn pool", "lrn pool relu"])
def test_a_gpu_has_one_kernel_each_way(layers: str, calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """In Triton's interpreter: the bits of its kernels one after the other."""
    pytest.importorskip("triton")
    from alexnet_dist.models import normalized_pooling_kernel as kernel

    for module in (joined, normalization, pooling):
        monkeypatch.setattr(module, "runs_kernels", lambda maps: True)
    made, apart, maps = join(build(layers)), build(layers), make_maps((1, 16, 5, 5), torch.float32)
    take_in_relu(apart)
    started: list[Tensor] = []
    monkeypatch.setattr(kernel.NormalizePoolVectors, "apply", note_call(kernel.NormalizePoolVectors.apply, started))
    for a, b in zip(forward_and_gradient(apart, maps), forward_and_gradient(made, maps), strict=True):
        assert torch.equal(a, b)
    assert len(started) == 1
    assert not calls


def note_call(function: Any, started: list[Tensor]) -> Any:
    def call(maps: Tensor, *settings: Any) -> Tensor:
        started.append(maps)
        made: Tensor = function(maps, *settings)
        return made

    return call


def test_a_gradient_may_lie_in_another_layout() -> None:
    layers, maps = join(build("relu lrn pool")), make_maps((2, 8, 9, 9), torch.float32)
    leaf = maps.requires_grad_()
    output = layers(leaf)
    grads = make_maps(output.shape, torch.float32, seed=1)
    (expected,) = torch.autograd.grad(output, leaf, grads, retain_graph=True)
    for grad in (grads.contiguous(), grads[:, :, :1, :1].expand_as(grads)):
        (made,) = torch.autograd.grad(output, leaf, grad, retain_graph=True)
        again = torch.autograd.grad(output, leaf, grad.clone(memory_format=torch.channels_last), retain_graph=True)[0]
        assert torch.equal(made, again)
    assert expected.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(("variant", "norms"), [("paper", 2), ("source2012", 1), ("ungrouped", 0), ("torchvision", 0)])
def test_a_network_keeps_its_numbers_and_its_function(variant: str, norms: int, calls: list[str]) -> None:
    """In source2012 a second normalization stands between conv2's and the pooling, so they stay apart."""
    small = {"image_size": 64, "conv_channels": (8, 16, 8, 8, 8), "fc_width": 16, "num_classes": 5, "dropout": 0.0}
    model, images = build_model(make_spec(variant, **small), seed=0), make_maps((2, 3, 64, 64), torch.float32)
    for weight in model.parameters():
        nn.init.normal_(weight, 0, 0.3, generator=torch.Generator().manual_seed(1))
    model.to(memory_format=torch.channels_last)
    found = []
    for joins in (False, True):
        if joins:
            take_in_relu(model.features)
            join_poolings(model.features)
        model.zero_grad()
        logits = model(images)
        logits.square().mean().sqrt().backward()
        found.append([logits.detach(), *(weight.grad.clone() for weight in model.parameters())])
    for a, b in zip(*found, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5 * float(a.abs().max()))
    places = [module for module in model.features.modules() if isinstance(module, JoinedPooling)]
    assert [module.norm is not None for module in places].count(True) == norms
    assert calls == ["join_forward"] * 3 + ["join_backward"] * 3
    assert list(model.state_dict()) == list(build_model(make_spec(variant, **small), seed=0).state_dict())


def test_second_derivative_is_refused() -> None:
    maps = make_maps((1, 8, 5, 5), torch.float32).requires_grad_()
    (gradient,) = torch.autograd.grad(join(build("lrn pool"))(maps).square().sum(), maps, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.heavy
def test_a_compiler_sees_the_layers() -> None:
    plain, maps = build("relu lrn pool"), make_maps((2, 8, 9, 9), torch.float32)
    compiled = torch.compile(join(plain), backend="aot_eager", fullgraph=True)
    for a, b in zip(forward_and_gradient(plain, maps), forward_and_gradient(compiled, maps), strict=True):
        torch.testing.assert_close(b, a, rtol=2e-6, atol=2e-6)


@pytest.mark.heavy
@pytest.mark.parametrize(
    ("code", "why"), [("int f(void) { return 3 }", "error: expected"), (None, "there is no C compiler")]
)
def test_what_cannot_be_compiled_is_one_line(
    code: str | None, why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "functions.c"
    source.write_text(code or "int f(void) { return 3; }")
    if code is None:
        monkeypatch.setattr(c_library, "find_c_compiler", lambda: None)
    with pytest.raises(MachineError, match=why):
        load_c_library(source)


@pytest.mark.heavy
def test_what_was_compiled_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A compiler that does not know -march=native, as on some processors, is asked for less."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(c_library, "OWN_PROCESSOR", (("-march=unknown",), ()))
    source = tmp_path / "functions.c"
    source.write_text("int f(void) { return 3; }")
    assert load_c_library(source).f() == 3
    (kept,) = (tmp_path / "cache" / "alexnet_dist" / "c").iterdir()
    load_c_library.cache_clear()
    monkeypatch.setattr(c_library, "_compile", None)
    assert load_c_library(source).f() == 3
    assert SOURCE.exists()
    assert kept.name.startswith("functions-")
