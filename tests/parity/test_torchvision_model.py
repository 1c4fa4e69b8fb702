"""The torchvision variant is torchvision's alexnet: same keys, same weights, same logits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torchvision.models import alexnet

from alexnet_dist.models import AlexNet, build_model, make_spec

NUM_CLASSES = 11


@pytest.fixture(scope="module")
def theirs() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return alexnet(weights=None, num_classes=NUM_CLASSES).eval()


@pytest.fixture(scope="module")
def ours() -> AlexNet:
    return build_model(make_spec("torchvision", num_classes=NUM_CLASSES), seed=5).eval()


def make_images(image_size: int = 224) -> Tensor:
    return torch.randn(2, 3, image_size, image_size, generator=torch.Generator().manual_seed(1))  # (2, 3, S, S)


def test_same_keys_and_shapes(ours: AlexNet, theirs: nn.Module) -> None:
    layout = [(name, weight.shape) for name, weight in ours.state_dict().items()]
    assert layout == [(name, weight.shape) for name, weight in theirs.state_dict().items()]


def test_other_weights_give_other_logits(ours: AlexNet, theirs: nn.Module) -> None:
    with torch.no_grad():
        assert (ours(make_images()) - theirs(make_images())).abs().max() > 1e-3


@pytest.mark.parametrize("image_size", [224, 127])
def test_their_weights_give_their_logits(theirs: nn.Module, image_size: int) -> None:
    model = AlexNet(make_spec("torchvision", num_classes=NUM_CLASSES, image_size=image_size)).eval()
    model.load_state_dict(theirs.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(model(make_images(image_size)), theirs(make_images(image_size)), rtol=0, atol=1e-6)


def test_our_weights_give_our_logits(ours: AlexNet) -> None:
    model = alexnet(weights=None, num_classes=NUM_CLASSES).eval()
    model.load_state_dict(ours.state_dict(), strict=True)
    with torch.no_grad():
        torch.testing.assert_close(model(make_images()), ours(make_images()), rtol=0, atol=1e-6)


def test_dropout_falls_on_the_same_activations(theirs: nn.Module) -> None:
    model = AlexNet(make_spec("torchvision", num_classes=NUM_CLASSES))
    model.load_state_dict(theirs.state_dict(), strict=True)
    logits = []
    with torch.random.fork_rng(), torch.no_grad():
        for network in (model.train(), theirs.train()):
            torch.manual_seed(2)
            logits.append(network(make_images()))
    theirs.eval()
    torch.testing.assert_close(logits[0], logits[1], rtol=0, atol=1e-6)
