"""What a network is computed with: asked for, kept, by the CPU's table, or by measuring."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from helpers.tiny import tiny_spec
from torch import nn

from alexnet_dist.assembly import kernels
from alexnet_dist.assembly.kernels import (
    CHOICES,
    ON_CPU,
    PLAIN,
    Kernels,
    Subject,
    apply_kernels,
    check_kernels,
    choose_kernels,
    measure_forms,
    pick_fastest,
)
from alexnet_dist.base.errors import MachineError, UsageError
from alexnet_dist.models import build_model, named_layers
from alexnet_dist.models.convolutions import DenseConv2d, SpaceToDepthConv2d, TowersApart
from alexnet_dist.models.fused_relu import ReluConv2d, ReluLinear
from alexnet_dist.models.joined_pooling import JoinedPooling
from alexnet_dist.settings.reader import build_config
from alexnet_dist.settings.schema import KernelsConfig

CPU, GPU = torch.device("cpu"), torch.device("cuda")
KEPT = Kernels("reference", "dense", "direct", "reference", "flat", "reference", "chosen when the run began")
SECONDS = {"grouped": 0.03, "apart": 0.01, "dense": 0.02, "direct": 0.03, "space_to_depth": 0.02}
SECONDS |= {"vectors": 0.03, "joined": 0.02}


def make_subject(device: torch.device, **overrides: Any) -> Subject:
    return Subject(tiny_spec(**overrides), device, "bf16", channels_last=True, num_images=2)


def measure(subject: Subject, forms: Mapping[str, Any]) -> dict[str, float]:
    return {name: SECONDS[name] for name in forms}


def never(subject: Subject, forms: Mapping[str, Any]) -> dict[str, float]:
    raise AssertionError("nothing is to be measured")


def refuse() -> None:
    raise MachineError("no compiler")


@pytest.fixture(autouse=True)
def _with_triton(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernels, "can_build_kernels", lambda: True)


@pytest.mark.parametrize("compiles", [True, False])
def test_a_cpu_goes_by_its_table(compiles: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not compiles:
        monkeypatch.setattr(kernels, "load_functions", refuse)
    chosen = choose_kernels(KernelsConfig(), make_subject(CPU), measure=never)
    assert tuple(getattr(chosen, name) for name in CHOICES) == (ON_CPU if compiles else PLAIN)
    assert chosen.reason == ("the fastest on CPUs" if compiles else "no maps joined: no compiler")
    assert not chosen.are_special


def test_what_another_machine_lacks_counts() -> None:
    chosen = choose_kernels(KernelsConfig(), make_subject(CPU), Kernels(*ON_CPU, reason="as before"), obstacle="none")
    assert (chosen.maps, chosen.reason) == ("reference", "joined cannot go on: none")
    chosen = choose_kernels(KernelsConfig(maps="joined"), make_subject(CPU), obstacle="none")
    assert (chosen.maps, chosen.reason) == ("joined", "maps asked for, else the fastest on CPUs")
    chosen = choose_kernels(KernelsConfig(), make_subject(GPU), measure=measure, obstacle="none")
    assert (chosen.maps, chosen.relu, chosen.update, chosen.loss) == ("reference",) * 4
    chosen = choose_kernels(KernelsConfig(), make_subject(GPU), KEPT, obstacle="none")
    assert (chosen.groups, chosen.update, chosen.reason) == ("dense", "reference", "flat cannot go on: none")


def test_a_run_goes_on_without_a_compiler(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    kept = Kernels(*ON_CPU, reason="as before")
    assert choose_kernels(KernelsConfig(), make_subject(CPU), kept) == kept
    monkeypatch.setattr(kernels, "load_functions", refuse)
    chosen = choose_kernels(KernelsConfig(), make_subject(CPU), kept)
    assert (chosen.maps, chosen.reason) == ("reference", "joined cannot go on: no compiler")
    assert "kernels.maps joined cannot go on with this run" in caplog.text


def test_a_gpu_takes_what_was_fastest_and_says_why() -> None:
    chosen = choose_kernels(KernelsConfig(), make_subject(GPU), measure=measure)
    assert (chosen.maps, chosen.groups, chosen.conv1) == ("vectors", "apart", "space_to_depth")
    assert (chosen.relu, chosen.update, chosen.loss) == ("fused", "flat", "fused")
    assert chosen.reason == (
        "measured: grouped 30.00 ms, apart 10.00 ms, dense 20.00 ms; direct 30.00 ms, space_to_depth 20.00 ms"
    )
    assert (
        str(chosen) == "convolutions apart, conv1 space_to_depth, maps by vectors, ReLU fused, loss fused, update flat"
    )


def test_each_is_measured_in_the_form_of_the_others() -> None:
    seen: list[tuple[str, str, str]] = []

    def note(subject: Subject, forms: Mapping[str, Any]) -> dict[str, float]:
        seen.extend(forms.values())
        return measure(subject, forms)

    choose_kernels(KernelsConfig(), make_subject(GPU), measure=note)
    assert seen[-2:] == [("apart", "direct", "vectors"), ("apart", "space_to_depth", "vectors")]
    choose_kernels(KernelsConfig(groups="dense"), make_subject(GPU), measure=note)
    assert seen[-2:] == [("dense", "space_to_depth", "vectors"), ("dense", "space_to_depth", "joined")]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"groups": "dense"}, ("joined", "dense", "space_to_depth")),
        ({"conv1": "direct"}, ("vectors", "apart", "direct")),
        ({"maps": "reference"}, ("reference", "apart", "space_to_depth")),
        ({"groups": "dense", "conv1": "direct", "maps": "vectors"}, ("vectors", "dense", "direct")),
        ({"maps": "joined"}, ("joined", "apart", "space_to_depth")),
    ],
)
def test_what_is_asked_for_is_taken(settings: dict[str, Any], expected: tuple[str, ...]) -> None:
    chosen = choose_kernels(KernelsConfig(**settings), make_subject(GPU), measure=measure)
    assert (chosen.maps, chosen.groups, chosen.conv1) == expected


def test_nothing_is_measured_where_all_is_asked_for() -> None:
    settings = KernelsConfig(
        maps="reference", groups="apart", conv1="direct", relu="fused", update="flat", loss="fused"
    )
    for kept in (None, KEPT):
        chosen = choose_kernels(settings, make_subject(GPU), kept, measure=never)
        assert chosen == Kernels("reference", "apart", "direct", "fused", "flat", "fused", "asked for")


def test_a_run_that_goes_on_keeps_what_it_has() -> None:
    assert choose_kernels(KernelsConfig(), make_subject(GPU), KEPT, measure=never) == KEPT
    chosen = choose_kernels(KernelsConfig(conv1="space_to_depth"), make_subject(GPU), KEPT, measure=never)
    assert (chosen.groups, chosen.conv1) == ("dense", "space_to_depth")
    assert chosen.reason == "conv1 asked for, else chosen when the run began"


@pytest.mark.parametrize("kept", [None, KEPT])
@pytest.mark.parametrize(("rule", "strategy"), [("adam", "ddp"), ("sgd", "towers"), ("sgd", "hybrid")])
def test_the_flat_update_is_for_sgd_on_a_whole_network(rule: str, strategy: str, kept: Kernels | None) -> None:
    chosen = choose_kernels(KernelsConfig(), make_subject(GPU), kept, strategy, rule, measure)
    assert chosen.update == "reference"
    with pytest.raises(UsageError, match="update flat is not for this run"):
        build_config(
            {
                "data.source": "synthetic",
                "optimizer.name": rule,
                "parallel.strategy": strategy,
                "kernels.update": "flat",
            }
        )


@pytest.mark.parametrize("asked", ["auto", "fused"])
@pytest.mark.parametrize("case", ["fp16", "classes"])
def test_the_fused_loss_is_not_for_everything(case: str, asked: Any) -> None:
    subject = replace(make_subject(GPU), precision="fp16") if case == "fp16" else make_subject(GPU, num_classes=16_385)
    chosen = choose_kernels(KernelsConfig(loss=asked), subject, measure=measure)
    assert (chosen.update, chosen.loss) == ("flat", "reference")
    assert chosen.reason.startswith("measured")


@pytest.mark.parametrize("case", ["towers", "no groups"])
def test_groups_are_not_measured_where_there_are_none(case: str) -> None:
    subject = make_subject(GPU, **({"conv_groups": (1, 1, 1, 1, 1)} if case == "no groups" else {}))
    strategy = "towers" if case == "towers" else "ddp"
    chosen = choose_kernels(KernelsConfig(), subject, strategy=strategy, measure=measure)
    assert (chosen.maps, chosen.groups, chosen.conv1) == ("joined", "grouped", "space_to_depth")
    assert chosen.reason == ("measured: direct 30.00 ms, space_to_depth 20.00 ms; vectors 30.00 ms, joined 20.00 ms")


@pytest.mark.parametrize(("other", "expected"), [(0.97, "plain"), (0.94, "other")])
def test_another_form_must_be_clearly_faster(other: float, expected: str) -> None:
    assert pick_fastest({"plain": 1.0, "other": other, "slow": 2.0}) == expected


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_measuring_computes_each_form_and_touches_no_random_state(precision: str) -> None:
    subject = Subject(tiny_spec(), CPU, precision, channels_last=True, num_images=2)
    state, now = torch.get_rng_state(), iter(range(1000))
    forms: Any = {
        "grouped": ("grouped", "direct", "reference"),
        "apart": ("apart", "space_to_depth", "reference"),
        "joined": ("grouped", "direct", "joined"),
    }
    assert measure_forms(subject, forms, lambda: float(next(now))) == dict.fromkeys(forms, 1.0)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize(
    ("kernels_", "strategy", "features", "conv1", "conv2"),
    [
        (("reference", "grouped", "direct", "reference"), "ddp", nn.Sequential, nn.Conv2d, nn.Conv2d),
        (("reference", "grouped", "direct", "fused"), "ddp", nn.Sequential, ReluConv2d, ReluConv2d),
        (("vectors", "grouped", "direct", "fused"), "ddp", nn.Sequential, nn.Conv2d, nn.Conv2d),
        (("vectors", "apart", "space_to_depth", "fused"), "ddp", TowersApart, SpaceToDepthConv2d, nn.Conv2d),
        (("joined", "grouped", "direct", "reference"), "towers", nn.Sequential, nn.Conv2d, nn.Conv2d),
        (("joined", "apart", "direct", "reference"), "ddp", TowersApart, nn.Conv2d, nn.Conv2d),
        (("vectors", "dense", "direct", "fused"), "hybrid", nn.Sequential, nn.Conv2d, DenseConv2d),
        (("vectors", "apart", "space_to_depth", "fused"), "towers", nn.Sequential, SpaceToDepthConv2d, nn.Conv2d),
    ],
)
def test_a_network_is_computed_as_chosen(
    kernels_: tuple[str, str, str, str], strategy: str, features: type, conv1: type, conv2: type
) -> None:
    model = build_model(tiny_spec(), seed=0)
    apply_kernels(model, Kernels(*kernels_, "reference", "reference", reason=""), strategy)
    layers = named_layers(model)
    assert (type(model.features), type(layers["conv1"]), type(layers["conv2"])) == (features, conv1, conv2)
    wanted = [module.uses_vectors for module in model.modules() if hasattr(module, "uses_vectors")]
    assert wanted == [kernels_[0] != "reference"] * 5
    is_fused = kernels_[3] == "fused" and strategy == "ddp" and kernels_[1] != "apart"
    fused = [name for name, layer in layers.items() if isinstance(layer, ReluConv2d | ReluLinear)]
    convolutions = ["conv3", "conv4"] if kernels_[0] != "reference" else ["conv1", "conv2", "conv3", "conv4", "conv5"]
    assert fused == ([*convolutions, "fc6", "fc7"] if is_fused else [])
    taken = [module.takes_relu for module in model.modules() if hasattr(module, "takes_relu")]
    assert sum(taken) == (0 if kernels_[0] == "reference" else 3)
    joined = sum(isinstance(module, JoinedPooling) for module in model.modules())
    assert joined == (3 if kernels_[:2] == ("joined", "grouped") else 0)
    left = sum(isinstance(module, nn.ReLU) for module in model.modules())
    assert left == 7 - sum(taken) - len(fused)


@pytest.mark.parametrize(
    ("device", "can_build", "why"), [(CPU, True, "no CUDA device"), (GPU, False, "Triton or its C compiler")]
)
def test_kernels_that_cannot_be_are_refused(
    device: torch.device, can_build: bool, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    build: Callable[[], bool] = lambda: can_build  # noqa: E731
    monkeypatch.setattr(kernels, "can_build_kernels", build)
    monkeypatch.setattr(kernels, "load_functions", refuse)
    check_kernels(KernelsConfig(), device)
    check_kernels(KernelsConfig(maps="reference", groups="apart"), device)
    for wanted in (
        KernelsConfig(maps="vectors"),
        KernelsConfig(update="flat"),
        KernelsConfig(relu="fused"),
        KernelsConfig(loss="fused"),
    ):
        with pytest.raises(MachineError, match=why):
            check_kernels(wanted, device)
    with pytest.raises(MachineError, match="no compiler" if device == CPU else why):
        check_kernels(KernelsConfig(maps="joined"), device)
