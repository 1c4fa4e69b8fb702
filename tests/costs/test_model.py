"""The cost model: what is sent, counted by hand; how long it takes; what is kept in memory; published runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from helpers.tiny import tiny_spec

from alexnet_dist.costs.model import Compute, Link, Links, choose_shards, predict, recommend, transfer_seconds
from alexnet_dist.costs.network_size import measure_network
from alexnet_dist.costs.published import PUBLISHED, TOLERANCE, PublishedRun, predict_band
from alexnet_dist.costs.transfers import Strategy, count_held, list_transfers, meeting_points, refuse
from alexnet_dist.models import AlexNet, make_spec

PAPER = measure_network(make_spec("paper"))
FLAT, WIDTH, CLASSES = 9216, 4096, 1000
CONVOLUTIONS, FC8 = 2_334_080, 4_097_000
SHARDED = 60_965_224 - CONVOLUTIONS - FC8
FAST = Links(between=Link(1e9, latency=0.0), inside=Link(1e12, latency=0.0), per_machine=4)


def sent(strategy: Strategy, processes: int, images: int = 16) -> float:
    return sum(transfer.sent for transfer in list_transfers(PAPER, strategy, processes, images))


# -- the network ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("variant", ["paper", "source2012", "ungrouped", "torchvision"])
def test_parameters_are_those_of_the_network(variant: str) -> None:
    spec = make_spec(variant, image_size=96, fc_width=64, num_classes=10)
    expected = sum(parameter.numel() for parameter in AlexNet(spec).parameters())
    assert measure_network(spec).num_parameters == expected


def test_the_papers_network() -> None:
    assert PAPER.num_parameters == 60_965_224
    assert PAPER.num_convolution == CONVOLUTIONS
    assert (PAPER.inputs["conv3"], PAPER.inputs["fc6"], PAPER.inputs["fc7"]) == (13 * 13 * 256, FLAT, WIDTH)
    assert PAPER.conv_backward_share == pytest.approx(0.593, abs=5e-4)  # perf.md 3e
    assert meeting_points(PAPER) == ["conv3", "fc6", "fc7"]


@pytest.mark.parametrize(
    ("variant", "overrides", "expected"),
    [
        ("paper", {}, True),
        ("source2012", {}, True),
        ("paper", {"conv_groups": (1, 2, 2, 2, 2)}, True),
        ("paper", {"lrn": False}, True),
        ("ungrouped", {}, False),
        ("torchvision", {}, False),
        ("paper", {"lrn_groups": 1}, False),
        ("paper", {"conv_groups": (1, 1, 1, 1, 1)}, False),
    ],
)
def test_which_networks_have_towers(variant: str, overrides: dict[str, Any], expected: bool) -> None:
    assert measure_network(make_spec(variant, **overrides)).has_towers is expected


# -- bytes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("processes", [1, 2, 8, 1024])
@pytest.mark.parametrize("size", [2, 4])
def test_ddp_sends_its_gradients_round_the_ring(processes: int, size: Any) -> None:
    expected = 2 * (processes - 1) / processes * 60_965_224 * size
    assert sent(Strategy("ddp", gradient_bytes=size), processes) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("size", [2, 4])
def test_towers_send_half_of_what_three_layers_read_and_the_logits(size: Any) -> None:
    half = (13 * 13 * 256 + FLAT + WIDTH) // 2
    expected = 2 * 16 * (2 * half + CLASSES) * size
    assert sent(Strategy("towers", exchange_bytes=size), 2) == expected


def test_pairs_of_towers_also_reduce_their_halves() -> None:
    pair = sent(Strategy("towers"), 2)
    shared = 2 * 3 / 4 * (60_965_224 + CLASSES) / 2 * 4  # fc8's bias is in both
    assert sent(Strategy("towers"), 8) == pytest.approx(pair + shared, rel=1e-12)


def test_towers_that_do_not_meet_at_conv3_send_less() -> None:
    apart = measure_network(make_spec("paper", conv_groups=(1, 2, 2, 2, 2)))
    assert meeting_points(apart) == ["fc6", "fc7"]
    transfers = list_transfers(apart, Strategy("towers"), 2, 16)
    assert sum(transfer.sent for transfer in transfers) == sent(Strategy("towers"), 2) - 2 * 16 * 13 * 13 * 256 * 4


@pytest.mark.parametrize("processes", [2, 8])
def test_hybrid_sends_activations_both_ways_and_the_small_gradients(processes: int) -> None:
    one_way = 16 * ((processes - 1) * (FLAT + WIDTH) + (processes - 1) / processes * WIDTH) * 2
    gradients = 2 * (processes - 1) / processes * (CONVOLUTIONS + FC8) * 4
    expected = 2 * one_way + gradients
    assert sent(Strategy("hybrid", exchange_bytes=2), processes) == pytest.approx(expected, rel=1e-12)


def test_hybrid_in_groups_reduces_the_shards_between_them() -> None:
    one_way = 16 * (3 * (FLAT + WIDTH) + 3 / 4 * WIDTH) * 4
    gradients = 2 * 7 / 8 * (CONVOLUTIONS + FC8) * 4 + 2 * 1 / 2 * SHARDED / 4 * 4
    assert sent(Strategy("hybrid", shards=4), 8) == pytest.approx(2 * one_way + gradients, rel=1e-12)


def test_one_process_sends_nothing() -> None:
    assert list_transfers(PAPER, Strategy("ddp"), 1, 16) == []
    assert list_transfers(PAPER, Strategy("hybrid"), 1, 16) == []


@pytest.mark.parametrize(
    ("strategy", "processes", "reason"),
    [
        (Strategy("towers"), 3, "even"),
        (Strategy("towers"), 1, "even"),
        (Strategy("hybrid"), 3, "4096"),
        (Strategy("hybrid", shards=4), 6, "groups of 4"),
        (Strategy("hybrid"), 8, None),
        (Strategy("towers"), 6, None),
        (Strategy("ddp"), 7, None),
    ],
)
def test_what_cannot_be_is_refused(strategy: Strategy, processes: int, reason: str | None) -> None:
    found = refuse(PAPER, strategy, processes)
    assert (found is None) == (reason is None)
    assert reason is None or reason in str(found)


# -- seconds ----------------------------------------------------------------------------------------------------------


def test_a_ring_through_machines_crosses_each_link_once() -> None:
    (fc, conv) = list_transfers(PAPER, Strategy("ddp"), 8, 16)
    assert transfer_seconds(conv, FAST, 8) == pytest.approx(conv.sent / 1e9)
    assert transfer_seconds(conv, FAST, 4) == pytest.approx(conv.sent / 1e12)  # one machine
    assert fc.is_hidden
    assert not conv.is_hidden


def test_groups_side_by_side_share_the_link() -> None:
    transfers = {transfer.what: transfer for transfer in list_transfers(PAPER, Strategy("hybrid", shards=4), 8, 16)}
    shard = transfers["fc6 and fc7 gradients"]
    assert transfer_seconds(shard, FAST, 8) == pytest.approx(4 * shard.sent / 1e9)
    assert transfer_seconds(transfers["activations"], FAST, 8) == pytest.approx(transfers["activations"].sent / 1e12)


def test_latency_counts_each_hop() -> None:
    slow = replace(FAST, between=Link(1e9, latency=1.0))
    (_, conv) = list_transfers(PAPER, Strategy("ddp"), 8, 16)
    assert transfer_seconds(conv, slow, 8) == pytest.approx(2 * 3 + conv.sent / 1e9)


def test_the_band_of_ddp_is_the_formula_of_perf_md() -> None:
    """perf.md 3e: T1 + max(0, t(fc) - w T1) + t(conv), and T1 + t(fc) + t(conv)."""
    compute = Compute(1e-3)
    found = predict(PAPER, Strategy("ddp"), 8, 64, compute, FAST)
    fc, conv = (2 * 7 / 8 * count * 4 / 1e9 for count in (60_965_224 - CONVOLUTIONS, CONVOLUTIONS))
    assert found.slowest_seconds == pytest.approx(0.064 + fc + conv)
    assert found.fastest_seconds == pytest.approx(0.064 + max(0.0, fc - PAPER.conv_backward_share * 0.064) + conv)


def test_what_takes_processors_from_computing_is_not_hidden() -> None:
    """perf.md 3e with a floor: of what could be hidden, as much waits as the processors work for it."""

    def step(share: float, images: int) -> tuple[float, float]:
        link = Link(1e9, 0.0, computed_seconds_per_byte=share / 1e9)
        found = predict(PAPER, Strategy("ddp"), 8, images, Compute(1e-3), replace(FAST, between=link))
        return found.fastest_seconds, found.slowest_seconds

    fc, conv = (2 * 7 / 8 * count * 4 / 1e9 for count in (60_965_224 - CONVOLUTIONS, CONVOLUTIONS))
    assert step(0.0, 1000)[0] == pytest.approx(1.0 + conv)
    assert step(0.3, 1000)[0] == pytest.approx(1.0 + conv + 0.3 * fc)
    assert step(0.3, 64) == step(0.0, 64)  # the link is what is waited for
    for images in (64, 1000):
        fastest, slowest = step(2.0, images)  # two cores work for it, the link's time is all that can be lost
        assert fastest == slowest


@pytest.mark.parametrize(("processes", "name"), [(4, "inside_compressed"), (8, "between_compressed")])
def test_gradients_in_half_precision_have_a_speed_of_their_own(processes: int, name: str) -> None:
    """Half the bytes at half the speed gain nothing; activations do not mind."""
    plain = replace(FAST, inside=FAST.between)
    slow = replace(plain, **{name: Link(0.5e9, latency=0.0)})
    for compressed in (Strategy("ddp", gradient_bytes=2), Strategy("hybrid", gradient_bytes=2)):
        fp32 = replace(compressed, gradient_bytes=4)
        transfers = [list_transfers(PAPER, strategy, processes, 16) for strategy in (compressed, fp32)]
        for half, whole in zip(*transfers, strict=True):
            same = transfer_seconds(whole, slow, processes)
            assert transfer_seconds(half, slow, processes) == pytest.approx(same)
            gain = 2 if half.is_gradient else 1
            assert transfer_seconds(half, plain, processes) == pytest.approx(same / gain)


def test_what_does_not_depend_on_the_batch_shrinks_with_what_is_held() -> None:
    compute = Compute(1e-3, 0.1)
    ddp, towers, hybrid = (
        predict(PAPER, Strategy(name), 4, 16, compute, FAST).compute_seconds for name in ("ddp", "towers", "hybrid")
    )
    assert ddp == pytest.approx(0.116)
    assert towers == pytest.approx(0.016 + 0.1 * (60_965_224 + CLASSES) / 2 / 60_965_224)
    assert hybrid == pytest.approx(0.016 + 0.1 * count_held(PAPER, Strategy("hybrid"), 4) / 60_965_224)


def test_hybrid_goes_over_groups_where_that_is_faster() -> None:
    compute = Compute(1e-5)
    wide = choose_shards(PAPER, Strategy("hybrid"), 1024, 128, compute, FAST)
    assert wide.shards == 4
    assert choose_shards(PAPER, Strategy("hybrid"), 4, 128, compute, FAST).shards is None
    few = choose_shards(PAPER, Strategy("hybrid"), 8, 4, compute, FAST)
    assert few.shards is None  # few images: it is cheaper to send them all than to reduce the shards


@pytest.mark.parametrize("name", ["ddp", "towers", "hybrid"])
def test_more_images_or_slower_links_never_help(name: Any) -> None:
    def seconds(images: int, speed: float) -> float:
        links = Links(between=Link(speed), inside=Link(10 * speed), per_machine=4)
        return predict(PAPER, Strategy(name), 16, images, Compute(1e-4, 1e-2), links).step_seconds

    assert seconds(16, 1e9) < seconds(32, 1e9)
    assert seconds(16, 1e9) < seconds(16, 1e8)


# -- advice -----------------------------------------------------------------------------------------------------------


def best(links: Links, processes: int, images: int) -> str:
    strategies = (Strategy("ddp"), Strategy("ddp", 2), Strategy("towers"), Strategy("hybrid", exchange_bytes=2))
    found = [predict(PAPER, one, processes, images, Compute(1e-4), links) for one in strategies]
    chosen, reason = recommend(found)
    assert "sends" in reason
    return str(chosen.strategy)


def test_a_fast_link_needs_nothing_but_ddp() -> None:
    assert best(Links(between=Link(450e9), inside=Link(450e9), per_machine=8), 8, 256) == "ddp fp32"


def test_a_slow_link_with_few_images_wants_another_strategy() -> None:
    slow = Links(between=Link(1.25e8), inside=Link(1.25e8), per_machine=1)
    assert best(slow, 2, 16).startswith(("towers", "hybrid"))
    assert best(slow, 8, 2048) == "ddp bf16"  # so many images that activations outweigh gradients


def test_one_process_needs_no_strategy() -> None:
    chosen, reason = recommend([predict(PAPER, Strategy("ddp"), 1, 16, Compute(1e-3), FAST)])
    assert chosen.strategy == Strategy("ddp")
    assert reason == "one process sends nothing"


# -- memory -----------------------------------------------------------------------------------------------------------


def test_memory_is_state_and_activations() -> None:
    network = measure_network(tiny_spec())
    alone = predict(network, Strategy("ddp"), 1, 4, Compute(1.0), FAST, activation_bytes=4)
    assert alone.memory_bytes == 12 * network.num_parameters + 4 * (4 * network.kept + 8 * network.pooled)


def test_a_tower_holds_about_half() -> None:
    whole, half = (predict(PAPER, Strategy(name), 2, 1, Compute(1.0), FAST).memory_bytes for name in ("ddp", "towers"))
    assert 0.49 < half / whole < 0.52


# -- published runs ---------------------------------------------------------------------------------------------------

HELD = [run for run in PUBLISHED if run.is_held]


def is_in_band(run: PublishedRun) -> bool:
    """Whether the published efficiency lies in the band."""
    slow, fast = predict_band(run)
    return slow - TOLERANCE <= run.efficiency <= fast + TOLERANCE


@pytest.mark.parametrize("run", HELD, ids=lambda run: run.name)
def test_published_runs_with_peer_to_peer_links_lie_in_the_band(run: PublishedRun) -> None:
    assert is_in_band(run)


@pytest.mark.parametrize(
    ("name", "fast", "slow"),
    [
        ("8 A100-PCIe fp16", 0.995, 0.909),
        ("8 RTX 8000 fp16", 0.995, 0.914),
        ("8 RTX 3090 fp16", 0.685, 0.484),
        ("8 K80 fp32", 0.994, 0.900),
        ("8 P100, DGX-1 fp32", 0.995, 0.922),
        ("512 V100, GradientFlow fp16", 0.745, 0.517),
    ],
)
def test_bands_are_those_of_perf_md(name: str, fast: float, slow: float) -> None:
    """perf.md 3f, worked out there by another program with rounded sizes."""
    (run,) = [run for run in PUBLISHED if run.name == name]
    assert predict_band(run) == pytest.approx((slow, fast), abs=0.015)


@pytest.mark.parametrize("factor", [0.25, 8.0])
def test_the_band_notices_a_model_that_sends_too_much(factor: float) -> None:
    """8 times the bytes, which is 8 times less link, leaves the band; a faster link hides nothing more."""
    run = next(run for run in HELD if run.name == "8 A100-PCIe fp16")
    assert is_in_band(replace(run, link=run.link / factor)) is (factor < 1)
