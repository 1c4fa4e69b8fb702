"""Local response normalization against PyTorch's own layer, applied to each tower; that within maps, from its sum."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet_dist.models import LocalResponseNorm, MapResponseNorm

SETTINGS = {"size": 5, "alpha": 1e-4, "beta": 0.75, "k": 2.0}
FORMATS = {"nchw": torch.contiguous_format, "nhwc": torch.channels_last}


def make_maps(shape: tuple[int, ...] = (3, 96, 7, 5), *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    """Values of the size that conv1 gives on the 0-255 scale, where the normalization does something."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=dtype) * 100


def normalize_with_torch(maps: Tensor, groups: int, **settings: float) -> Tensor:
    stock = nn.LocalResponseNorm(**(SETTINGS | settings))
    return torch.cat([stock(tower) for tower in maps.chunk(groups, 1)], 1)


def forward_and_gradient(layer: nn.Module, maps: Tensor, grad: Tensor) -> tuple[Tensor, Tensor]:
    leaf = maps.detach().requires_grad_()
    output = layer(leaf)
    (gradient,) = torch.autograd.grad(output, leaf, grad)  # unlike leaf.grad, as it comes: never laid out anew
    return output.detach(), gradient


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(
    "settings",
    [{}, {"beta": 0.6}, {"size": 3, "alpha": 5e-4}, {"size": 1}, {"size": 9, "k": 1.0, "beta": 1.0}],
    ids=["2012", "beta", "size3", "size1", "size9"],
)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 2e-6)], ids=["f64", "f32"])
def test_equals_torch_on_each_tower(
    memory_format: torch.memory_format, groups: int, settings: dict[str, float], dtype: torch.dtype, tolerance: float
) -> None:
    maps = make_maps(dtype=dtype).contiguous(memory_format=memory_format)
    grad = make_maps(seed=1, dtype=dtype)
    layer = LocalResponseNorm(**(SETTINGS | settings), groups=groups)
    output, gradient = forward_and_gradient(layer, maps, grad)
    leaf = maps.detach().requires_grad_()
    expected = normalize_with_torch(leaf, groups, **settings)
    expected.backward(grad)
    torch.testing.assert_close(output, expected.detach(), rtol=tolerance, atol=tolerance * 100)
    torch.testing.assert_close(gradient, leaf.grad, rtol=tolerance, atol=tolerance * 100)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("beta", [0.75, 0.6])
@pytest.mark.parametrize("shape", [(2, 12, 2, 3), (2, 2, 3, 1), (3, 8)], ids=["maps", "window_wider", "vectors"])
def test_gradient_is_the_derivative(groups: int, beta: float, shape: tuple[int, ...]) -> None:
    # A large alpha, so that the part of the gradient that goes through the window is far above the tolerance.
    layer = LocalResponseNorm(alpha=2.0, beta=beta, groups=groups)
    maps = (make_maps(shape) / 100).requires_grad_()
    assert torch.autograd.gradcheck(layer, maps, eps=1e-6, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("images", [1, 5, 50])
def test_result_does_not_depend_on_the_images_beside_it(images: int) -> None:
    # On up to four threads, 50 images of this size go through in several rounds, the last one shorter.
    maps, grad = make_maps((images, 96, 13, 13), dtype=torch.float32), make_maps((images, 96, 13, 13)).float()
    layer = LocalResponseNorm(groups=2)
    together = forward_and_gradient(layer, maps, grad)
    alone = forward_and_gradient(layer, maps[-1:], grad[-1:])
    torch.testing.assert_close(together[0][-1:], alone[0], rtol=1e-6, atol=0)
    torch.testing.assert_close(together[1][-1:], alone[1], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("layer", [LocalResponseNorm(groups=2), MapResponseNorm()], ids=["lrn", "map"])
def test_no_images_are_fine(layer: nn.Module, memory_format: torch.memory_format) -> None:
    maps = make_maps((0, 8, 5, 5)).contiguous(memory_format=memory_format)
    output, gradient = forward_and_gradient(layer, maps, maps)
    assert output.shape == gradient.shape == maps.shape


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_keeps_type_and_memory_format(memory_format: torch.memory_format, groups: int, dtype: torch.dtype) -> None:
    maps = make_maps(dtype=torch.float32).to(dtype).contiguous(memory_format=memory_format)
    output, gradient = forward_and_gradient(LocalResponseNorm(groups=groups), maps, torch.ones_like(maps))
    assert (output.dtype, gradient.dtype) == (dtype, dtype)
    assert output.is_contiguous(memory_format=memory_format)
    assert gradient.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_16_bit_inputs_are_computed_in_32(dtype: torch.dtype) -> None:
    maps, grad = make_maps(dtype=torch.float32).to(dtype), make_maps(seed=1, dtype=torch.float32).to(dtype)
    layer = LocalResponseNorm(groups=2)
    narrow = forward_and_gradient(layer, maps, grad)
    wide = forward_and_gradient(layer, maps.float(), grad.float())
    assert torch.equal(narrow[0], wide[0].to(dtype))  # rounded once, at the end
    assert torch.equal(narrow[1], wide[1].to(dtype))


def test_float16_squares_do_not_overflow() -> None:
    maps = torch.full((1, 8, 1, 1), 1000.0, dtype=torch.float16)  # its square is beyond float16
    assert LocalResponseNorm(groups=2)(maps).min() > 10


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    maps, grad = make_maps(dtype=torch.float32).to(dtype), make_maps(seed=1, dtype=torch.float32).to(dtype)
    layer = LocalResponseNorm(groups=2)
    expected = forward_and_gradient(layer, maps, grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, gradient = forward_and_gradient(layer, maps, grad)
    assert output.dtype == dtype
    assert torch.equal(output, expected[0])
    assert torch.equal(gradient, expected[1])


def test_towers_differ_from_joined_exactly_at_the_seam() -> None:
    maps = make_maps()
    per_tower, joined = LocalResponseNorm(groups=2)(maps), LocalResponseNorm(groups=1)(maps)
    differs = (per_tower != joined).any(dim=0).flatten(1).any(1)  # (96,)
    assert differs.nonzero().flatten().tolist() == [46, 47, 48, 49]


@pytest.mark.heavy
def test_compiles_without_a_graph_break() -> None:
    layer = LocalResponseNorm(groups=2)
    maps, grad = make_maps(), make_maps(seed=1)
    expected = forward_and_gradient(layer, maps, grad)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    output, gradient = forward_and_gradient(compiled, maps, grad)
    torch.testing.assert_close(output, expected[0], rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient, expected[1], rtol=1e-12, atol=1e-12)


def test_second_derivative_is_refused() -> None:
    maps = make_maps((1, 8, 1, 1)).requires_grad_()
    (gradient,) = torch.autograd.grad(LocalResponseNorm()(maps).square().sum(), maps, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


@pytest.mark.parametrize(
    ("settings", "reason"), [({"size": 4}, "odd"), ({"size": -1}, "odd"), ({"groups": 0}, "at least 1")]
)
def test_impossible_settings_are_refused(settings: dict[str, int], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        LocalResponseNorm(**settings)


def test_channels_that_do_not_divide_are_refused() -> None:
    with pytest.raises(ValueError, match="7 channels"):
        LocalResponseNorm(groups=2)(make_maps((1, 7, 2, 2)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_gpu_agrees_with_cpu(dtype: torch.dtype) -> None:
    maps, grad = make_maps(dtype=torch.float32).to(dtype), make_maps(seed=1, dtype=torch.float32).to(dtype)
    layer = LocalResponseNorm(groups=2)
    expected = forward_and_gradient(layer, maps, grad)
    with torch.autocast("cuda", dtype=torch.bfloat16):
        output, gradient = forward_and_gradient(layer, maps.cuda(), grad.cuda())
    tolerance = 1e-5 if dtype == torch.float32 else 1e-2  # 1e-2: one unit in the last place of bfloat16
    assert output.dtype == dtype
    torch.testing.assert_close(output.cpu(), expected[0], rtol=tolerance, atol=1e-4)
    torch.testing.assert_close(gradient.cpu(), expected[1], rtol=tolerance, atol=1e-4)


# Within maps ----------------------------------------------------------------------------------------------------------


def normalize_within_maps(maps: Tensor, size: int = 5, alpha: float = 1e-3, beta: float = 0.75) -> Tensor:
    """The definition, by an explicit sum over every window: a convolution of each map with ones."""
    channels = maps.shape[1]
    ones = torch.ones(channels, 1, size, size, dtype=maps.dtype)
    total = F.conv2d(maps.square(), ones, padding=size // 2, groups=channels)  # (B, C, H, W)
    return maps / (1 + alpha / size**2 * total) ** beta


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("shape", [(2, 6, 13, 13), (2, 6, 2, 3), (1, 1, 1, 1)], ids=["maps", "window_larger", "pixel"])
@pytest.mark.parametrize("settings", [{}, {"size": 3, "alpha": 0.1, "beta": 0.5}, {"size": 1}], ids=str)
def test_map_norm_is_its_definition(
    memory_format: torch.memory_format, shape: tuple[int, ...], settings: dict[str, float]
) -> None:
    maps = make_maps(shape).contiguous(memory_format=memory_format)
    expected = normalize_within_maps(maps, **settings)
    torch.testing.assert_close(MapResponseNorm(**settings)(maps), expected, rtol=1e-12, atol=0)
    assert not torch.allclose(expected, maps, rtol=1e-3)  # or else there would be nothing to see


@pytest.mark.parametrize("shape", [(2, 3, 6, 7), (2, 3, 2, 1)], ids=["maps", "window_larger"])
@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
def test_map_norm_gradient_is_the_derivative(shape: tuple[int, ...], memory_format: torch.memory_format) -> None:
    # A large alpha, so that the part of the gradient that goes through the window is far above the tolerance.
    maps = (make_maps(shape) / 100).contiguous(memory_format=memory_format).requires_grad_()
    assert torch.autograd.gradcheck(MapResponseNorm(alpha=2.0), maps, eps=1e-6, atol=1e-8, rtol=1e-6)


@pytest.mark.parametrize("memory_format", FORMATS.values(), ids=FORMATS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_map_norm_keeps_type_and_memory_format(memory_format: torch.memory_format, dtype: torch.dtype) -> None:
    maps = make_maps(dtype=torch.float32).to(dtype).contiguous(memory_format=memory_format)
    output, gradient = forward_and_gradient(MapResponseNorm(), maps, torch.ones_like(maps))
    assert (output.dtype, gradient.dtype) == (dtype, dtype)
    assert output.is_contiguous(memory_format=memory_format)
    assert gradient.is_contiguous(memory_format=memory_format)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_map_norm_of_16_bit_inputs_is_computed_in_32(dtype: torch.dtype) -> None:
    maps, grad = make_maps(dtype=torch.float32).to(dtype), make_maps(seed=1, dtype=torch.float32).to(dtype)
    narrow = forward_and_gradient(MapResponseNorm(), maps, grad)
    wide = forward_and_gradient(MapResponseNorm(), maps.float(), grad.float())
    assert torch.equal(narrow[0], wide[0].to(dtype))  # rounded once, at the end
    assert torch.equal(narrow[1], wide[1].to(dtype))


def test_map_norm_squares_do_not_overflow_in_float16() -> None:
    maps = torch.full((1, 8, 5, 5), 1000.0, dtype=torch.float16)  # its square is beyond float16
    assert MapResponseNorm()(maps).min() > 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_leaves_map_norm_alone(dtype: torch.dtype) -> None:
    maps, grad = make_maps(dtype=torch.float32).to(dtype), make_maps(seed=1, dtype=torch.float32).to(dtype)
    expected = forward_and_gradient(MapResponseNorm(), maps, grad)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output, gradient = forward_and_gradient(MapResponseNorm(), maps, grad)
    assert output.dtype == dtype
    assert torch.equal(output, expected[0])
    assert torch.equal(gradient, expected[1])


@pytest.mark.parametrize("training", [True, False])
def test_map_norm_works_on_meta_in_both_modes(training: bool) -> None:
    with torch.device("meta"):
        layer, maps = MapResponseNorm().train(training), torch.empty(2, 8, 13, 13)
    output = layer(maps)
    assert (output.shape, output.device.type) == (maps.shape, "meta")


def test_map_norm_does_not_mix_maps() -> None:
    maps, other = make_maps((1, 4, 5, 5)), make_maps((1, 4, 5, 5))
    other[:, 1] += 1
    changed = (MapResponseNorm()(maps) != MapResponseNorm()(other)).flatten(2).any(2)  # (1, 4)
    assert changed.tolist() == [[False, True, False, False]]


@pytest.mark.parametrize("size", [4, 0, -1])
def test_impossible_map_norm_is_refused(size: int) -> None:
    with pytest.raises(ValueError, match="odd"):
        MapResponseNorm(size=size)
