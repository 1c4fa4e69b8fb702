"""From kernels.* to what a network is computed with: one choice a run, which run.json holds and later starts keep.

Every choice computes the same function and rounds differently, so a run that changed it on its way would not end with
the bits of one that was never killed. On a GPU `auto` measures; on a CPU it goes by a table, which
benchmarks/convolutions.py and benchmarks/normalization.py measured.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import cast

import torch
from torch import Tensor, nn

from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.machine import can_build_kernels
from alexnet_dist.models import AlexNet, AlexNetSpec, build_on_meta
from alexnet_dist.models.convolutions import CONV1_FORMS, GROUPS_FORMS, Conv1Form, GroupsForm, has_groups, take_forms
from alexnet_dist.models.fused_relu import fuse_relu
from alexnet_dist.models.joined_pooling import join_poolings, load_functions
from alexnet_dist.models.vectors import take_in_relu, use_vectors
from alexnet_dist.settings.schema import KernelsConfig
from alexnet_dist.training.objective import MOST_CLASSES

logger = logging.getLogger("alexnet_dist")

CHOICES = ("maps", "groups", "conv1", "relu", "update", "loss")
PLAIN = ("reference", "grouped", "direct", "reference", "reference", "reference")  # as it is written down
ON_CPU = ("joined", *PLAIN[1:])  # where its functions in C can be built
KERNELS = {"maps": "vectors", "relu": "fused", "update": "flat", "loss": "fused"}  # what a GPU has of its own
MOST_IMAGES = 256  # in a measurement
ROUNDS = 5
LEAST_GAIN = 0.95  # of the plain form's time: another one must take less

Clock = Callable[[], float]
DTYPES = {"fp32": torch.float32, "tf32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Kernels:
    """What a network is computed with, and why.

    Args:
        maps: normalization and pooling: vectors, joined or reference.
        groups: the convolutions in groups: grouped, apart or dense.
        conv1: direct or space_to_depth.
        relu: of the layers that no map kernel takes it from; fused or reference.
        update: flat or reference.
        loss: fused or reference.
        reason: in words.
    """

    maps: str
    groups: str
    conv1: str
    relu: str
    update: str
    loss: str
    reason: str

    def __str__(self) -> str:
        network = f"convolutions {self.groups}, conv1 {self.conv1}, maps by {self.maps}"
        return f"{network}, ReLU {self.relu}, loss {self.loss}, update {self.update}"

    @property
    def are_special(self) -> bool:
        """Whether something is neither as it is written down nor what every CPU has."""
        return tuple(getattr(self, name) for name in CHOICES) not in (PLAIN, ON_CPU)


@dataclass(frozen=True)
class Subject:
    """A network as it will be computed.

    Args:
        spec: the whole network.
        device: where it lives.
        precision: fp32, tf32, bf16 or fp16.
        channels_last: the layout of its maps.
        num_images: in a forward.
    """

    spec: AlexNetSpec
    device: torch.device
    precision: str
    channels_last: bool
    num_images: int


Form = tuple[GroupsForm, Conv1Form, str]  # of the layers in groups, of conv1, and of the maps
Measure = Callable[[Subject, Mapping[str, Form]], Mapping[str, float]]


def settle_cudnn(benchmark: bool) -> None:
    """Say to cuDNN whether it may choose algorithms by timing them. What it chose cannot be kept for a later start."""
    torch.backends.cudnn.benchmark = benchmark


def check_kernels(settings: KernelsConfig, device: torch.device) -> None:
    """Refuse kernels that this machine cannot have.

    Raises:
        MachineError: kernels.maps is vectors, kernels.update flat, kernels.relu or kernels.loss fused, and there is no
            GPU, or nothing that builds kernels for it; kernels.maps is joined, and there is no compiler for it.
    """
    if settings.maps == "joined" and (why := find_obstacle(device)):
        raise MachineError("kernels.maps joined is not for this machine", why=why, remedy="set --kernels.maps auto")
    for name, value in KERNELS.items():
        if getattr(settings, name) == value and not _has_kernels(device):
            why = "there is no CUDA device" if device.type != "cuda" else "Triton or its C compiler is missing"
            what, remedy = f"kernels.{name} {value} needs kernels on a GPU", f"set --kernels.{name} auto"
            raise MachineError(what, why=why, remedy=remedy)


def find_obstacle(device: torch.device) -> str:
    """Why a device cannot have its maps joined, nor a GPU any kernels of its own; "" where it can."""
    if device.type != "cpu":
        return "" if _has_kernels(device) else "Triton or its C compiler is missing"
    try:
        load_functions()
    except MachineError as error:
        return str(error)
    return ""


def choose_kernels(
    settings: KernelsConfig,
    subject: Subject,
    kept: Kernels | None = None,
    strategy: str = "ddp",
    rule: str = "sgd",
    measure: Measure | None = None,
    obstacle: str | None = None,
) -> Kernels:
    """Choose what the settings leave open: as before in a run that goes on, else by table or by measuring.

    Args:
        settings: of the kernels.
        subject: the network.
        kept: what the run has computed with on such a device.
        strategy: ddp, towers or hybrid.
        rule: optimizer.name.
        measure: see `measure_forms`.
        obstacle: what `find_obstacle` says of the machines of the run; None = there is only this one.
    """
    asked = {name: value for name in CHOICES if (value := getattr(settings, name)) != "auto"}
    unfit = {} if _can_be_flat(rule, strategy) else {"update": "reference"}
    if not _can_be_fused(subject):
        asked.pop("loss", None)
        unfit["loss"] = "reference"
    if len(asked) == len(CHOICES):
        return Kernels(**asked, reason="asked for")
    if obstacle is None:
        obstacle = find_obstacle(subject.device)
    if kept:
        chosen = _go_on(kept, asked, obstacle)
    else:
        chosen = _choose(subject, asked, obstacle, strategy, measure or measure_forms)
    reason = f"{' and '.join(asked)} asked for, else {chosen.reason}" if asked else chosen.reason
    return replace(chosen, **(asked | unfit), reason=reason)


def apply_kernels(model: AlexNet, kernels: Kernels, strategy: str) -> None:
    """Let a network, or this process's part of it, be computed so, in place.

    Args:
        model: on its device.
        kernels: what was chosen.
        strategy: under towers each process has one tower, and no layer whose towers could lie apart.

    Raises:
        MachineError: maps is joined, and this process's machine has no C compiler for it.
    """
    groups = "grouped" if strategy == "towers" else kernels.groups
    take_forms(model, cast(GroupsForm, groups), cast(Conv1Form, kernels.conv1))
    _apply_maps(model, kernels.maps, groups)
    if kernels.relu == "fused" and strategy == "ddp" and groups != "apart":  # towers apart are not computed by layers
        fuse_relu(model.features, model.classifier)


def _apply_maps(model: AlexNet, maps: str, groups: str) -> None:
    use_vectors(model, maps != "reference")
    if maps != "reference":
        take_in_relu(model.features)
    if maps == "joined" and groups != "apart":
        if next(model.parameters()).device.type == "cpu":
            load_functions()
        join_poolings(model.features)


def _can_be_flat(rule: str, strategy: str) -> bool:
    """Whether there is a kernel for the update of all parameters: for SGD, on a network that is whole."""
    return rule == "sgd" and strategy == "ddp"


def _can_be_fused(subject: Subject) -> bool:
    """Whether the kernels for the loss are for such logits; the loss of fp16 is scaled once more on its way."""
    return subject.precision != "fp16" and subject.spec.num_classes <= MOST_CLASSES


def _choose(subject: Subject, asked: Mapping[str, str], obstacle: str, strategy: str, measure: Measure) -> Kernels:
    if subject.device.type == "cpu":  # no other form of the convolutions was clearly faster: results/convolutions.json
        if not obstacle or "maps" in asked:
            return Kernels(*ON_CPU, "the fastest on CPUs")
        logger.info(f"kernels   maps by reference, which is slower: {obstacle}")
        return Kernels(*PLAIN, f"no maps joined: {obstacle}")
    has_kernels = not obstacle
    groups, conv1, words = asked.get("groups", "grouped"), asked.get("conv1", "direct"), []
    maps = asked.get("maps", "vectors" if has_kernels else "reference")
    if "groups" not in asked and strategy != "towers" and has_groups(build_on_meta(subject.spec)):
        seconds = measure(subject, {form: (form, cast(Conv1Form, conv1), maps) for form in GROUPS_FORMS})
        groups = pick_fastest(seconds)
        words.append(describe_times(seconds))
    form = cast(GroupsForm, groups)
    if "conv1" not in asked:
        seconds = measure(subject, {conv1: (form, conv1, maps) for conv1 in CONV1_FORMS})
        conv1 = pick_fastest(seconds)
        words.append(describe_times(seconds))
    if "maps" not in asked and has_kernels and groups != "apart" and subject.spec.lrn:
        seconds = measure(subject, {maps: (form, cast(Conv1Form, conv1), maps) for maps in ("vectors", "joined")})
        maps = pick_fastest(seconds)
        words.append(describe_times(seconds))
    reason = f"measured: {'; '.join(words)}" if words else "for a GPU"
    others = KERNELS if has_kernels else dict.fromkeys(KERNELS, "reference")
    return Kernels(**(others | {"maps": maps}), groups=groups, conv1=conv1, reason=reason)


def _go_on(kept: Kernels, asked: Mapping[str, str], obstacle: str) -> Kernels:
    """What a run has computed with, as far as its machines can."""
    lost = {name: value for name in KERNELS if name not in asked and (value := getattr(kept, name)) != "reference"}
    if not obstacle or not lost:
        return kept
    names = " and ".join(f"kernels.{name} {value}" for name, value in lost.items())
    logger.warning("%s cannot go on with this run (%s): reference does", names, obstacle)
    reason = f"{' and '.join(lost.values())} cannot go on: {obstacle}"
    return replace(kept, **dict.fromkeys(lost, "reference"), reason=reason)


def _has_kernels(device: torch.device) -> bool:
    return device.type == "cuda" and can_build_kernels()


# -- measuring --------------------------------------------------------------------------------------------------------


def measure_forms(subject: Subject, forms: Mapping[str, Form], clock: Clock = time.perf_counter) -> dict[str, float]:
    """Seconds for a forward and a backward of the convolutions in each form; the least of some rounds, A B A B ...

    Args:
        subject: the network.
        forms: to measure, by name.
        clock: in seconds.
    """
    calls = {name: _build_call(subject, *form) for name, form in forms.items()}
    times: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(ROUNDS + 2):
        for name, call in calls.items():
            began = _read(clock, subject.device)
            call()
            if number >= 2:  # the first ones allocate and choose
                times[name].append(_read(clock, subject.device) - began)
    return {name: min(seconds) for name, seconds in times.items()}


def _build_call(subject: Subject, groups: GroupsForm, conv1: Conv1Form, maps: str) -> Callable[[], None]:
    device, dtype = subject.device, DTYPES[subject.precision]
    layout = torch.channels_last if subject.channels_last else torch.contiguous_format
    generator = torch.Generator(device).manual_seed(0)  # PyTorch's global random state stays as it is
    model = build_on_meta(subject.spec)
    model.classifier = nn.Sequential()
    model.to_empty(device=device).to(memory_format=layout)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.01, generator=generator)
    take_forms(model, groups, conv1)
    _apply_maps(model, maps, groups)
    side = subject.spec.image_size
    shape = (min(subject.num_images, MOST_IMAGES), subject.spec.in_channels, side, side)
    images: Tensor = torch.randn(shape, device=device, generator=generator).to(dtype=dtype, memory_format=layout)

    def call() -> None:
        model.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            maps = model(images)  # (B, C5 * 6 * 6): there is no classifier
        maps.backward(torch.ones_like(maps))

    return call


def _read(clock: Clock, device: torch.device) -> float:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return clock()


def pick_fastest(seconds: Mapping[str, float]) -> str:
    """The fastest form; the first, which is the plain one, unless another takes clearly less."""
    plain, fastest = next(iter(seconds)), min(seconds, key=lambda name: seconds[name])
    return fastest if seconds[fastest] < LEAST_GAIN * seconds[plain] else plain


def describe_times(seconds: Mapping[str, float]) -> str:
    """The times in words."""
    return ", ".join(f"{name} {1000 * value:.2f} ms" for name, value in seconds.items())
