"""A trained network as one file for other programs: ONNX, torch.export, or torchvision's alexnet.

The graphs of ONNX and torch.export begin with the bytes of a picture that is already resized and cropped, and hold the
input scale; what to do before, and the names of the classes, stand in the file as text (`describe`). Each format has a
function that makes the bytes, and one that runs them as their reader would.
"""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import NamedTuple

import torch
from safetensors.torch import load, save
from torch import Tensor, nn

from alexnet_dist.base.durable import format_json
from alexnet_dist.base.errors import CheckpointError, DivergedError
from alexnet_dist.base.extras import import_extra
from alexnet_dist.base.machine import list_versions
from alexnet_dist.data.engines.finish import scale_pixels
from alexnet_dist.data.engines.loader import Normalization
from alexnet_dist.inference.model_folder import ModelCard
from alexnet_dist.models import VARIANTS, AlexNet, AlexNetSpec, spec_to_dict

INPUT, OUTPUTS, BATCH = "pixels", ("logits", "probabilities"), "batch"
# Fields that plain torchvision's alexnet takes as arguments, or that change nothing once the weights are there.
FREE_FIELDS = ("num_classes", "image_size", "dropout", "init", "lrn_groups")
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


class Difference(NamedTuple):
    """How far an exported file is from the network, over some pictures."""

    logit: float  # the largest absolute difference
    largest_logit: float
    probability: float  # the largest difference


class DeployedNetwork(nn.Module):
    """The network with its input scale in front.

    Pixels: (B, C, S, S) uint8. Logits and probabilities: (B, num_classes) each.
    """

    scale: Tensor
    bias: Tensor

    def __init__(self, network: AlexNet, normalization: Normalization) -> None:
        super().__init__()
        self.network = network
        scale, bias = normalization.fold(torch.zeros(1, 3))
        self.register_buffer("scale", scale[:, None, None])  # (C, 1, 1)
        self.register_buffer("bias", bias[0, :, None, None])  # (C, 1, 1)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        logits = self.network(pixels.float() * self.scale + self.bias)  # (B, num_classes)
        return logits, logits.softmax(dim=1)


def describe(card: ModelCard, scale_inside: bool) -> dict[str, str]:
    """What an exported file says of itself: texts, all but `variant` and `made_by` of them JSON.

    Args:
        card: of the model.
        scale_inside: whether the file holds the input scale; without it, mean and std (0-255 scale) are the user's to
            apply.
    """
    mode = "RGB" if card.spec.in_channels == 3 else "gray (ITU-R 601 luma)"
    preprocessing = {
        "resize": card.evaluation.resize,
        "resize_rule": "a number: the shorter side; two: height and width; null: none",
        "interpolation": "bilinear, antialiased",
        "centre_crop": card.evaluation.crop_size,
        "channels": mode,
        **asdict(card.normalization),
        "mean_and_std_inside": scale_inside,
    }
    versions = list_versions()
    texts = {"classes": card.classes, "preprocessing": preprocessing, "spec": spec_to_dict(card.spec)}
    return {
        "variant": card.variant,
        "made_by": ", ".join(f"{name} {versions[name]}" for name in ("alexnet_dist", "torch") if name in versions),
        **{name: format_json(value, name) for name, value in texts.items()},
    }


def pack_onnx(network: AlexNet, card: ModelCard) -> bytes:
    """An ONNX file for any number of pictures.

    Raises:
        MachineError: a package of ONNX_PACKAGES is not installed, or cannot be imported.
    """
    check_onnx_installed()
    with _quiet():
        program = torch.onnx.export(
            DeployedNetwork(network, card.normalization),
            (_example(card.spec),),
            dynamo=True,
            dynamic_shapes=({0: torch.export.Dim(BATCH)},),
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            verbose=False,
        )
    assert program is not None
    model = program.model_proto
    for key, text in describe(card, scale_inside=True).items():
        model.metadata_props.add(key=key, value=text)
    return bytes(model.SerializeToString())


def check_onnx_installed() -> None:
    """See to it that the packages are there and can be imported.

    Raises:
        MachineError: one is not, or cannot.
    """
    for name in ONNX_PACKAGES:
        import_extra(name, "export")


def run_onnx(data: bytes, card: ModelCard, pixels: Tensor) -> Tensor:
    """Logits (B, num_classes) of pixels (B, C, S, S), by onnxruntime on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run([OUTPUTS[0]], {INPUT: pixels.numpy()})[0])


def pack_torch_export(network: AlexNet, card: ModelCard) -> bytes:
    """A file of `torch.export.save` for any number of pictures."""
    with _quiet():
        program = torch.export.export(
            DeployedNetwork(network, card.normalization),
            (_example(card.spec),),
            dynamic_shapes=({0: torch.export.Dim(BATCH)},),
        )
        file = io.BytesIO()
        torch.export.save(program, file, extra_files=dict(describe(card, scale_inside=True)))
    return file.getvalue()


def run_torch_export(data: bytes, card: ModelCard, pixels: Tensor) -> Tensor:
    """Logits (B, num_classes) of pixels (B, C, S, S), by `torch.export.load`."""
    with _quiet():
        logits: Tensor = torch.export.load(io.BytesIO(data)).module()(pixels)[0]
    return logits


def pack_torchvision(network: AlexNet, card: ModelCard) -> bytes:
    """The state dict of torchvision's alexnet as a .safetensors file.

    Raises:
        CheckpointError: the network is not torchvision's.
    """
    differing = [
        name
        for name in AlexNetSpec.__dataclass_fields__
        if name not in FREE_FIELDS and getattr(card.spec, name) != getattr(VARIANTS["torchvision"], name)
    ]
    if differing:
        raise CheckpointError(
            "the network is not torchvision's alexnet",
            where=f"variant {card.variant}",
            why=f"{', '.join(differing)} differ{'s' if len(differing) == 1 else ''}",
            remedy="export it as onnx or torch_export, or train --model.variant torchvision",
        )
    return bytes(save(network.state_dict(), metadata=describe(card, scale_inside=False)))


def run_torchvision(data: bytes, card: ModelCard, pixels: Tensor) -> Tensor:
    """Logits (B, num_classes) of pixels (B, C, S, S), by torchvision's own network."""
    from torchvision.models import alexnet

    network = alexnet(weights=None, num_classes=card.spec.num_classes).eval()
    network.load_state_dict(load(data), strict=True)
    logits: Tensor = network(_normalize(card, pixels))
    return logits


class Format(NamedTuple):
    """How a file is made, and how its reader runs it."""

    pack: Callable[[AlexNet, ModelCard], bytes]
    run: Callable[[bytes, ModelCard, Tensor], Tensor]


FORMATS = {
    "onnx": Format(pack_onnx, run_onnx),
    "torch_export": Format(pack_torch_export, run_torch_export),
    "torchvision": Format(pack_torchvision, run_torchvision),
}


@torch.no_grad()
def compare(kind: Format, data: bytes, network: AlexNet, card: ModelCard, pixels: Tensor) -> Difference:
    """Run an exported file and the network, in float32 on the CPU.

    Args:
        kind: of the file.
        data: the file.
        network: the network it was made from.
        card: of the model.
        pixels: (B, C, S, S) uint8.

    Raises:
        DivergedError: the network's own logits are not finite.
    """
    ours = network(_normalize(card, pixels))  # (B, num_classes)
    if not ours.isfinite().all():
        remedy = "export weights of an earlier step"
        raise DivergedError("the network's outputs are not finite", where="pictures of --check", remedy=remedy)
    theirs = kind.run(data, card, pixels)  # (B, num_classes)
    probability = (ours.softmax(dim=1) - theirs.softmax(dim=1)).abs().max()
    return Difference(float((ours - theirs).abs().max()), float(ours.abs().max()), float(probability))


def _normalize(card: ModelCard, pixels: Tensor) -> Tensor:
    """As evaluation does it: (B, C, S, S) uint8 to float32."""
    shifts = torch.zeros(len(pixels), 3)
    return scale_pixels(card.normalization, pixels.permute(0, 2, 3, 1), shifts, channels_last=False)


def _example(spec: AlexNetSpec) -> Tensor:
    return torch.zeros(2, spec.in_channels, spec.image_size, spec.image_size, dtype=torch.uint8)


@contextmanager
def _quiet(names: Sequence[str] = ("onnxscript", "onnx_ir", "torch.onnx", "torch.export")) -> Iterator[None]:
    """Without what exporters say of their own workings."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
