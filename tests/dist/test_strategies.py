"""Towers and hybrid are the network of one device, cut: same logits, loss, gradients and weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.distributed as dist
from common.traffic import Traffic, count_gradient_bytes, predict_traffic
from helpers.dist_helper import run_processes
from helpers.strategies import (
    BATCH_SIZE,
    NUM_IMAGES,
    Case,
    backward_once,
    cut_tiny,
    ddp,
    draw_images,
    hybrid,
    start_case,
    towers,
    train_three_epochs,
)
from helpers.tiny import tiny_loader, worst_difference
from torch import Tensor

from alexnet_dist.assembly.strategy import replicate_network
from alexnet_dist.costs.transfers import Strategy
from alexnet_dist.models import named_layers
from alexnet_dist.parallel import collectives
from alexnet_dist.parallel.runtime import Runtime

TOLERANCES = {torch.float64: 1e-12, torch.float32: 1e-5}
CASES = [
    ddp(2),
    towers(2),
    towers(4),
    towers(2, "fc_only"),
    towers(2, "none"),
    towers(2, variant="source2012"),
    hybrid(2),
    hybrid(4),
    hybrid(4, 2),
    hybrid(4, 4, "batch_by_batch"),
    hybrid(2, None, "batch_by_batch", variant="torchvision", conv_groups=None),
    hybrid(3, fc_width=18),
]

# -- one forward and backward -----------------------------------------------------------------------------------------


KNOWN: dict[str, dict[torch.dtype, dict[str, Tensor]]] = {}


def backward_in_each_type(case: Case) -> dict[torch.dtype, dict[str, Tensor]]:
    return {dtype: backward_once(case, dtype) for dtype in TOLERANCES}


def backward_and_count(case: Case) -> tuple[dict[torch.dtype, dict[str, Tensor]], Traffic]:
    return backward_in_each_type(case), count_traffic(case)


def backward_alone(case: Case) -> dict[torch.dtype, dict[str, Tensor]]:
    """What one device computes; many cases share it."""
    key = str(case.alone())
    if key not in KNOWN:
        (KNOWN[key],) = run_processes(1, backward_in_each_type, case.alone())
    return KNOWN[key]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_logits_loss_and_gradients_are_those_of_one_device_and_bytes_those_of_the_closed_form(case: Case) -> None:
    found, counted = zip(*run_processes(case.world_size, backward_and_count, case), strict=True)
    for dtype, tolerance in TOLERANCES.items():
        assert worst_difference(found[0][dtype], backward_alone(case)[dtype]) <= tolerance, dtype
    assert set(counted) == {predict_bytes(case)}


def layer_outputs(case: Case) -> dict[str, Tensor]:
    model, _ = cut_tiny(case, start_case(case), torch.float32)
    found: dict[str, Tensor] = {}
    for name, layer in named_layers(model).items():
        layer.register_forward_hook(lambda _, __, output, name=name: found.update({name: output.detach().clone()}))
    model(draw_images(torch.float32)[0])
    return found


@pytest.mark.parametrize("channels", [[8, 16, 16, 16, 16], [96, 256, 384, 384, 256]], ids=["tiny", "paper"])
def test_convolutions_of_towers_are_bitwise_those_of_one_device(channels: list[int]) -> None:
    case = towers(2, conv_channels=channels)
    (whole,) = run_processes(1, layer_outputs, case.alone())
    halves = run_processes(2, layer_outputs, case)
    for layer in ("conv1", "conv2", "conv3", "conv4", "conv5"):
        assert torch.equal(torch.cat([half[layer] for half in halves], 1), whole[layer]), layer
    assert torch.equal(halves[0]["fc8"], halves[1]["fc8"])  # or the halves of a pair would drift apart


# -- defects that raise no exception ----------------------------------------------------------------------------------


def keep_own_slice_only() -> None:
    """A gather whose backward takes this process's slice of its own gradient, and not what the others add."""
    land = collectives._Flight.land

    def land_alone(flight: collectives._Flight) -> Tensor:
        if flight.join is None and flight.split is not None and flight.received is not None:
            rank = flight.wire.group.rank()
            flight.received = flight.received[rank : rank + 1]
        return land(flight)

    collectives._Flight.land = land_alone  # type: ignore[method-assign]


def add_up_in_backward() -> None:
    """Logits summed with torch.distributed.nn's all_reduce, whose backward sums as well."""
    collectives._SumParts.backward = staticmethod(lambda ctx, grad: (2 * grad, None))  # type: ignore[method-assign]


def forget_scale() -> None:
    """Shards whose gradients count the images of all processes as those of one."""
    collectives._ScaleGradient.backward = staticmethod(lambda ctx, grad: (grad, None))  # type: ignore[method-assign]


def average_over_the_world(runtime: Runtime) -> Runtime:
    """DDP as every tutorial wraps it."""
    return replace(runtime, mesh=replace(runtime.mesh, cut_group=dist.group.WORLD, dp_group=dist.group.WORLD))


def backward_with_defect(case: Case, defect: Callable[..., Any]) -> dict[str, Tensor]:
    if defect is average_over_the_world:
        return backward_once(case, torch.float32, average_over_the_world(start_case(case)))
    defect()
    return backward_once(case, torch.float32)


@pytest.mark.parametrize(
    ("case", "defect"),
    [
        (towers(2), keep_own_slice_only),
        (towers(2), add_up_in_backward),
        (towers(4), average_over_the_world),
        (hybrid(2), keep_own_slice_only),
        (hybrid(2), forget_scale),
        (hybrid(4, 2), average_over_the_world),
    ],
    ids=lambda value: getattr(value, "__name__", str(value)),
)
def test_comparison_notices_a_defect(case: Case, defect: Callable[..., Any]) -> None:
    expected = backward_alone(case)[torch.float32]
    found = run_processes(case.world_size, backward_with_defect, case, defect)[0]
    assert worst_difference(found, expected) > 100 * TOLERANCES[torch.float32]


def test_comparison_notices_a_joined_normalization() -> None:
    joined = replace(towers(2).alone(), spec={"lrn_groups": 1})
    (expected,) = run_processes(1, backward_once, joined, torch.float64)
    found = run_processes(2, backward_once, towers(2), torch.float64)[0]
    assert worst_difference(found, expected) > 100 * TOLERANCES[torch.float64]


# -- dropout and data -------------------------------------------------------------------------------------------------


def draw_mask_and_batch(case: Case, equal_masks: bool) -> tuple[list[bool], list[int]]:
    runtime = start_case(case)
    if equal_masks:  # the defect: the tower's number is left out of the seed
        runtime = replace(runtime, mesh=replace(runtime.mesh, strategy="ddp"))
    runtime.seed_dropout(seed=3, step=5)
    mask = torch.nn.functional.dropout(torch.ones(64), 0.5) > 0
    (batch,) = tiny_loader(runtime, 16, 8, training=True).batches(1, 2)
    return mask.tolist(), batch.ids.tolist()


def test_towers_of_a_pair_see_the_same_images_under_different_dropout_masks() -> None:
    masks, ids = zip(*run_processes(4, draw_mask_and_batch, towers(4), False), strict=True)
    assert len({tuple(mask) for mask in masks}) == 4
    assert ids[0] == ids[1] != ids[2] == ids[3]
    assert sorted(ids[0] + ids[2]) == sorted(set(ids[0] + ids[2]))


def test_comparison_notices_equal_masks() -> None:
    masks, _ = zip(*run_processes(2, draw_mask_and_batch, towers(2), True), strict=True)
    assert masks[0] == masks[1]


def test_shards_draw_masks_of_their_own() -> None:
    masks, ids = zip(*run_processes(2, draw_mask_and_batch, hybrid(2), False), strict=True)
    assert masks[0] != masks[1]
    assert ids[0] != ids[1]


# -- three epochs -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained_alone() -> Callable[[Case, torch.dtype, str], dict[str, Tensor]]:
    known: dict[Any, dict[str, Tensor]] = {}

    def train(case: Case, dtype: torch.dtype, rule: str) -> dict[str, Tensor]:
        key = (str(case.alone()), dtype, rule)
        if key not in known:
            (known[key],) = run_processes(1, train_three_epochs, case.alone(), dtype, rule, BATCH_SIZE)
        return known[key]

    return train


UPDATES = [
    (towers(2), "sgd", 12),
    (towers(2), "sgd", 4),
    (towers(4), "sgd", 6),
    (towers(4), "lars", 3),
    (hybrid(2), "sgd", 6),
    (hybrid(2), "lars", 2),
    (hybrid(4), "sgd", 3),
    (hybrid(4, 2, "batch_by_batch"), "sgd", 1),
    (hybrid(4, 2), "lars", 3),
]
DOUBLE = UPDATES[::2]  # the others among the slow tests
OFTEN = (UPDATES[1], UPDATES[-1])  # in fp32, too; the others are looser copies of what float64 shows


@pytest.mark.parametrize(
    ("case", "rule", "micro_batch_size", "dtype"),
    [
        *(pytest.param(*one, torch.float64, marks=() if one in DOUBLE else pytest.mark.slow) for one in UPDATES),
        *(pytest.param(*one, torch.float32, marks=() if one in OFTEN else pytest.mark.slow) for one in UPDATES),
    ],
    ids=str,
)
def test_three_epochs_give_the_weights_of_one_device(
    trained_alone: Callable[..., dict[str, Tensor]], case: Case, rule: str, micro_batch_size: int, dtype: torch.dtype
) -> None:
    found = run_processes(case.world_size, train_three_epochs, case, dtype, rule, micro_batch_size)[0]
    assert worst_difference(found, trained_alone(case, dtype, rule)) <= TOLERANCES[dtype]


def train_with_own_norms(case: Case) -> dict[str, Tensor]:
    """The defect: LARS takes a part of a layer for the layer."""
    return train_three_epochs(case, torch.float32, "lars", BATCH_SIZE // 2)


def test_comparison_notices_lars_on_parts(
    trained_alone: Callable[..., dict[str, Tensor]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Runtime, "sum_over_parts", lambda runtime, values: values)
    found = run_processes(2, train_with_own_norms, hybrid(2))[0]
    assert worst_difference(found, trained_alone(hybrid(2), torch.float32, "lars")) > 1e-3


# -- what the settings do ---------------------------------------------------------------------------------------------


def count_traffic(case: Case) -> Traffic:
    runtime = start_case(case)
    model, partition = cut_tiny(case, runtime, torch.float32)
    forward = replicate_network(case.parallel, model, partition, compiled=False, accumulates=False, runtime=runtime)
    images = draw_images(torch.float32)[0].chunk(runtime.dp_size)[runtime.dp_rank]
    for _ in range(2):  # DDP makes its final buckets after the first backward
        before = partition.wire.bytes_sent if partition.wire is not None else 0
        forward(images).sum().backward()
        model.zero_grad()
    sent = partition.wire.bytes_sent - before if partition.wire is not None else 0
    return Traffic(sent, count_gradient_bytes(forward))


def predict_bytes(case: Case) -> Traffic:
    parallel = case.parallel
    strategy = Strategy(
        parallel.strategy,
        gradient_bytes=4 if parallel.gradient_compression is None else 2,
        exchange_bytes=4 if parallel.exchange in (None, "fp32") else 2,
        shards=parallel.shard_size,
    )
    return predict_traffic(case.make_spec(), strategy, case.world_size, NUM_IMAGES // case.world_size)


NARROW = [
    towers(2).with_settings(exchange="bf16"),
    towers(4).with_settings(exchange="fp16", gradient_compression="bf16"),
    hybrid(4, 2, "batch_by_batch").with_settings(exchange="bf16", gradient_compression="fp16"),
    ddp(4).with_settings(gradient_compression="bf16"),
]


@pytest.mark.parametrize("case", NARROW, ids=str)
def test_bytes_of_narrow_exchanges_are_those_of_the_closed_form(case: Case) -> None:
    assert set(run_processes(case.world_size, count_traffic, case)) == {predict_bytes(case)}


def test_bytes_of_the_papers_network_are_the_published_ones() -> None:
    """Two GPUs: what enters conv3, fc6, fc7 from the other tower, and the logits, for an image; in half precision."""
    from alexnet_dist.models import make_spec

    sent = predict_traffic(make_spec("paper"), Strategy("towers", exchange_bytes=2), 2, 1).activations
    assert sent == 2 * 2 * (2 * (21_632 + 4_608 + 2_048) + 1_000)  # two processes have two images
    sent = predict_traffic(make_spec("paper"), Strategy("hybrid", exchange_bytes=2), 2, 1).activations
    assert sent == 2 * 2 * (9_216 + 4_096 + 2_048)
    sent = predict_traffic(make_spec("paper"), Strategy("ddp"), 2, 1).gradients
    assert sent == 4 * 60_965_224


def backward_of_each(cases: list[Case]) -> list[dict[str, Tensor]]:
    return [backward_once(case, torch.float32) for case in cases]


@pytest.mark.parametrize("case", [towers(4), hybrid(4, 2)], ids=str)
def test_narrow_exchanges_round_a_little(case: Case) -> None:
    narrow: list[dict[str, Any]] = [{"exchange": "bf16"}, {"exchange": "fp16"}, {"gradient_compression": "bf16"}]
    cases = [case.with_settings(**settings) for settings in narrow]
    for settings, found in zip(narrow, run_processes(4, backward_of_each, cases)[0], strict=True):
        assert 1e-5 < worst_difference(found, backward_alone(case)[torch.float32]) < 0.05, settings


def test_an_exchange_may_be_wider_than_the_values() -> None:
    case = towers(2).with_settings(exchange="fp32")
    expected, found = (run_processes(2, backward_once, one, torch.float32)[0] for one in (towers(2), case))
    assert worst_difference(found, expected) == 0


def count_exchanges(case: Case) -> tuple[int, int]:
    """Exchanges of one forward, and how many were under way at once."""
    model, _ = cut_tiny(case, start_case(case), torch.float32)
    begun, under_way, most = 0, 0, 0
    launch, land = collectives._Flight.launch, collectives._Flight.land

    def counted_launch(flight: collectives._Flight, values: Tensor) -> None:
        nonlocal begun, under_way, most
        begun, under_way = begun + 1, under_way + 1
        most = max(most, under_way)
        launch(flight, values)

    def counted_land(flight: collectives._Flight) -> Tensor:
        nonlocal under_way
        under_way -= 1
        return land(flight)

    collectives._Flight.launch = counted_launch  # type: ignore[method-assign]
    collectives._Flight.land = counted_land  # type: ignore[method-assign]
    model(draw_images(torch.float32)[0])
    return begun, most


@pytest.mark.parametrize(("schedule", "expected"), [("at_once", (3, 1)), ("batch_by_batch", (6, 2))])
def test_batch_by_batch_sends_while_it_computes(schedule: str, expected: tuple[int, int]) -> None:
    assert run_processes(2, count_exchanges, hybrid(2, None, schedule)) == [expected] * 2


def list_arrivals(case: Case) -> list[str]:
    """What a backward pass ends, in order: exchanges, and the gradients of the weights around them."""
    model, _ = cut_tiny(case, start_case(case), torch.float32)
    logits = model(draw_images(torch.float32)[0])
    arrivals: list[str] = []
    land = collectives._Flight.land

    def noted_land(flight: collectives._Flight) -> Tensor:
        arrivals.append("exchange")
        return land(flight)

    collectives._Flight.land = noted_land  # type: ignore[method-assign]
    layers = named_layers(model)
    for name in ("conv5", "fc8"):
        layers[name].weight.register_post_accumulate_grad_hook(lambda _, name=name: arrivals.append(name))
    logits.sum().backward()
    return arrivals


@pytest.mark.parametrize(("schedule", "num_exchanges"), [("at_once", 3), ("batch_by_batch", 6)])
def test_gradient_of_fc8_waits_until_no_activation_is_to_be_sent(schedule: str, num_exchanges: int) -> None:
    expected = [*["exchange"] * num_exchanges, "fc8", "conv5"]
    assert run_processes(2, list_arrivals, hybrid(2, None, schedule)) == [expected] * 2
