"""How much of the difference between images reaches each layer: what a network that does not train lacks.

With weights of standard deviation 0.01 everywhere and inputs divided by their standard deviation, the logits of two
images differ by a few ten-thousandths of their size; all that the loss can then see is the biases.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from alexnet_dist.models.alexnet import AlexNet, named_layers

LEAST_SIGNAL = 1e-3


@torch.no_grad()
def measure_signal(model: AlexNet, images: Tensor) -> dict[str, float]:
    """Variation between images over the size of the outputs, for each layer: 0 = all images look alike.

    The root mean square over units of (the standard deviation over images), divided by that of the outputs themselves,
    before the ReLU. Dropout is off.

    Args:
        model: on any device; its mode is kept.
        images: (B, C, S, S), two or more.
    """
    signal: dict[str, float] = {}
    hooks = [layer.register_forward_hook(partial(_record, signal, name)) for name, layer in named_layers(model).items()]
    was_training = model.training
    try:
        model.eval()(images)
    finally:
        model.train(was_training)
        for hook in hooks:
            hook.remove()
    return signal


def _record(signal: dict[str, float], name: str, layer: nn.Module, inputs: object, outputs: Tensor) -> None:
    values = outputs.float()  # (B, ...)
    power = values.square().mean()
    signal[name] = float((values.var(dim=0, correction=0).mean() / power).sqrt()) if power > 0 else 0.0
