"""PyTorch's own tools take every variant: torch.fx, feature extraction, TorchScript, torch.export, torch.compile."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from safetensors.torch import load, save
from torch import Tensor, fx, nn
from torchvision.models.feature_extraction import create_feature_extractor

from alexnet_dist.models import VARIANTS, AlexNet, LocalResponseNorm, MapResponseNorm, build_model, make_spec

TINY: dict[str, Any] = {"conv_channels": (8, 16, 8, 8, 8), "fc_width": 16, "num_classes": 7, "image_size": 64}
APART = {"conv_groups": (1, 2, 2, 2, 2), "fc_groups": 2}  # two towers that do not meet before fc8
BATCH = torch.export.Dim("batch")


def make_model(name: str) -> AlexNet:
    """A variant, small, with weights large enough for its normalizations to do something."""
    spec = make_spec("source2012", **TINY, **APART) if name == "apart" else make_spec(name, **TINY)
    model = build_model(spec, seed=0).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model


def make_images(count: int) -> Tensor:
    return torch.randn(count, 3, 64, 64, generator=torch.Generator().manual_seed(2)) * 30


def forward_and_gradients(model: Callable[[Tensor], Tensor], images: Tensor, of: nn.Module) -> list[Tensor]:
    of.zero_grad()
    logits = model(images)
    logits.square().mean().sqrt().backward()
    return [logits.detach(), *(weight.grad for weight in of.parameters() if weight.grad is not None)]


@pytest.fixture(params=[*VARIANTS, "apart"])
def model(request: pytest.FixtureRequest) -> AlexNet:
    return make_model(request.param)


@pytest.fixture(autouse=True)
def _without_a_word_on_torchscript() -> Iterator[None]:
    """PyTorch advises against TorchScript where it is still used."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", (FutureWarning, DeprecationWarning))
        yield


def test_fx_graph_gives_the_same_bits(model: AlexNet) -> None:
    graph = fx.symbolic_trace(model)
    for images in (make_images(3), make_images(0)):
        assert torch.equal(graph(images), model(images))
    expected = forward_and_gradients(model, make_images(3), model)
    assert all(map(torch.equal, forward_and_gradients(graph, make_images(3), graph), expected))
    norms = [module for module in model.modules() if isinstance(module, LocalResponseNorm | MapResponseNorm)]
    assert sum(node.name.startswith("normalize_") for node in graph.graph.nodes) == len(norms)


def test_features_of_any_layer_can_be_taken(model: AlexNet) -> None:
    fc7 = f"classifier.{max(n for n, module in enumerate(model.classifier) if isinstance(module, nn.ReLU))}"
    extractor = create_feature_extractor(model, {"features.0": "conv1", fc7: "fc7"})
    images, found = make_images(2), {}

    def keep(name: str) -> Callable[..., None]:
        return lambda _module, _inputs, output: found.__setitem__(name, output)

    hooks = [model.get_submodule(n).register_forward_hook(keep(k)) for n, k in (("features.0", "conv1"), (fc7, "fc7"))]
    model(images)
    for hook in hooks:
        hook.remove()
    given = extractor(images)
    assert {name: tuple(values.shape) for name, values in given.items()} == {"conv1": (2, 8, 15, 15), "fc7": (2, 16)}
    assert torch.equal(given["fc7"], found["fc7"])
    if model.spec.relu_after_pool[0]:  # else the ReLU behind it has overwritten it, in the network too
        assert torch.equal(given["conv1"], found["conv1"])


def test_extracted_features_follow_the_mode(model: AlexNet) -> None:
    extractor = create_feature_extractor(model, ["classifier.6"])
    images = make_images(2)
    assert torch.equal(extractor.eval()(images)["classifier.6"], model(images))
    with torch.random.fork_rng():
        assert not torch.equal(extractor.train()(images)["classifier.6"], model(images))  # dropout


def script(model: AlexNet) -> nn.Module:
    scripted: nn.Module = torch.jit.script(model)
    return scripted


def trace(model: AlexNet) -> nn.Module:
    traced: nn.Module = torch.jit.trace(model, make_images(2))
    return traced


def export(model: AlexNet) -> nn.Module:
    return torch.export.export(model, (make_images(2),), dynamic_shapes=({0: BATCH},)).module()


def compile_eagerly(model: AlexNet) -> Callable[[Tensor], Tensor]:
    torch.compiler.reset()
    return torch.compile(model, backend="eager", fullgraph=True)


@pytest.mark.heavy
@pytest.mark.parametrize("tool", [script, trace, export, compile_eagerly], ids=lambda tool: tool.__name__)
def test_tool_keeps_outputs_and_gradients(model: AlexNet, tool: Callable[[AlexNet], nn.Module]) -> None:
    images = make_images(5)  # not as many as it has seen
    expected = forward_and_gradients(model, images, model)
    made = tool(model)
    found = forward_and_gradients(made, images, made)
    assert len(found) == len(expected) == 17
    for ours, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=2e-5, atol=float(ours.abs().max()) * 1e-5)


@pytest.mark.slow  # a C++ compiler takes a minute
def test_compiled_network_trains_as_the_eager_one() -> None:
    torch.compiler.reset()
    model = make_model("source2012")  # it has every kind of layer
    expected = forward_and_gradients(model, make_images(4), model)
    found = forward_and_gradients(torch.compile(model, fullgraph=True), make_images(4), model)
    for ours, theirs in zip(expected, found, strict=True):
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=float(ours.abs().max()) * 1e-4)


def test_copies_and_saved_weights_are_the_network(model: AlexNet) -> None:
    images = make_images(2)
    twin = copy.deepcopy(model)
    assert torch.equal(twin(images), model(images))
    other = AlexNet(model.spec).eval()
    other.load_state_dict(load(save(model.state_dict())), strict=True)
    assert torch.equal(other(images), model(images))
    with torch.no_grad():
        twin.get_parameter("features.0.weight").zero_()
    assert not torch.equal(twin(images), other(images))
