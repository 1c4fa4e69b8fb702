"""Whole runs under every strategy: checkpoints move between them, images count once, updates are blocked together."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import signal
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.dist_helper import run_processes, start_processes
from helpers.strategies import Case, cut_tiny, ddp, hybrid, start_case, towers
from helpers.tiny import tiny_config, tiny_loader, worst_difference
from safetensors.torch import load_file
from torch import Tensor

from alexnet_dist.assembly import loaders
from alexnet_dist.assembly.strategy import check_strategy, replicate_network
from alexnet_dist.base.errors import MachineError, UsageError
from alexnet_dist.cli.train import train
from alexnet_dist.inference.checkpoints import list_checkpoints
from alexnet_dist.inference.model_folder import read_card, read_model_weights
from alexnet_dist.inference.weights import load_weights, pack_tensors
from alexnet_dist.parallel import collectives
from alexnet_dist.parallel.partition import Partition
from alexnet_dist.parallel.runtime import Runtime
from alexnet_dist.runs import session
from alexnet_dist.tracking.trackers import read_rows
from alexnet_dist.training.evaluate import evaluate
from alexnet_dist.training.gate import BatchGate
from alexnet_dist.training.optim import build_optimizer, set_lr
from alexnet_dist.training.step import DeviceCounters, train_step

QUIET = {"precision": "fp32", "model__dropout": 0.0, "train__epochs": None, "checkpoint__every_steps": None}
FIRST_STEPS, ALL_STEPS = 4, 8  # ends of epochs: a run that ends elsewhere evaluates once more
STRATEGIES = {
    "ddp": (2, {}),
    "towers": (4, {"parallel__strategy": "towers"}),
    "hybrid": (4, {"parallel__strategy": "hybrid", "parallel__shard_size": 2}),
    "sharded": (2, {"parallel__strategy": "hybrid", "parallel__hybrid_schedule": "batch_by_batch"}),
}


def train_tiny(folder: Path, **overrides: Any) -> str:
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (a child of the test: its messages are not the test's)
    try:
        train(tiny_config(folder, **{**QUIET, **overrides}))
    except UsageError as error:
        return str(error)
    return "finished"


def train_with(strategy: str, folder: Path, steps: int, **overrides: Any) -> list[str]:
    world_size, settings = STRATEGIES[strategy]
    return run_processes(world_size, _call, folder, {"train__max_steps": steps, **settings, **overrides})


def _call(folder: Path, overrides: dict[str, Any]) -> str:
    return train_tiny(folder, **overrides)


def read_state(folder: Path) -> dict[str, Tensor]:
    """Weights and optimizer state of the newest checkpoint, and the weights of model/."""
    newest = list_checkpoints(folder / "checkpoints")[0]
    files = [newest / "weights.safetensors", newest / "optimizer.safetensors", folder / "model" / "model.safetensors"]
    return {f"{file.name}/{name}": tensor for file in files for name, tensor in load_file(file).items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run on one device."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    run_processes(1, _call, folder, {"train__max_steps": ALL_STEPS})
    return folder


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The first half of the same run, under each strategy."""
    folders = {name: tmp_path_factory.mktemp(name) / "run" for name in STRATEGIES}
    for name, folder in folders.items():
        train_with(name, folder, FIRST_STEPS)
    return folders


NAMES = list(STRATEGIES)


def _pair(before: int, after: int) -> Any:
    """Each strategy goes on under another one in `make test`, and under all of them among the slow tests."""
    is_often = (after - before) % len(NAMES) == 1
    return pytest.param(NAMES[before], NAMES[after], marks=() if is_often else pytest.mark.slow)


@pytest.mark.parametrize(("before", "after"), [_pair(*pair) for pair in itertools.product(range(len(NAMES)), repeat=2)])
def test_a_run_goes_on_under_every_other_strategy(
    undisturbed: Path, begun: dict[str, Path], tmp_path: Path, before: str, after: str
) -> None:
    folder = tmp_path / "run"
    shutil.copytree(begun[before], folder)
    assert train_with(after, folder, ALL_STEPS) == ["finished"] * STRATEGIES[after][0]
    facts = json.loads((folder / "run.json").read_text())
    assert facts["starts"][-1]["step"] == FIRST_STEPS
    assert facts["strategy"] == STRATEGIES[after][1].get("parallel__strategy", "ddp")
    ours, theirs = read_state(folder), read_state(undisturbed)
    assert {name: tensor.shape for name, tensor in ours.items()} == {n: t.shape for n, t in theirs.items()}
    assert worst_difference(ours, theirs) <= 1e-5
    for row, other in zip(read_rows(folder / "metrics.jsonl"), read_rows(undisturbed / "metrics.jsonl"), strict=True):
        assert row["event"] == other["event"]
        assert row.get("loss", 0) == pytest.approx(other.get("loss", 0), rel=1e-5)
        assert row.get("num_examples") == other.get("num_examples")


def train_in_double(folder: Path, overrides: dict[str, Any]) -> str:
    """In float64: RMSprop's first updates are ten times the rate, and magnify rounding under one strategy, too."""
    build_model, build_loader = session.build_model, loaders.build_loader
    session.build_model = lambda *args: build_model(*args).double()
    loaders.build_loader = lambda *args: replace(build_loader(*args), dtype=torch.float64)
    session.check_signal = lambda *args: None  # it measures in float32
    return train_tiny(folder, **overrides)


@pytest.mark.parametrize("rule", ["adam", pytest.param("rmsprop", marks=pytest.mark.slow)])  # lars keeps what sgd keeps
def test_the_state_of_every_rule_moves_between_strategies(tmp_path: Path, rule: str) -> None:
    settings = {"optimizer__name": rule, "optimizer__lr": 0.001}
    run_processes(1, train_in_double, tmp_path / "alone", {"train__max_steps": 8, **settings})
    for steps, strategy in ((4, "towers"), (8, "hybrid")):
        world_size, parallel = STRATEGIES[strategy]
        run_processes(
            world_size, train_in_double, tmp_path / "run", {"train__max_steps": steps, **parallel, **settings}
        )
    ours, theirs = read_state(tmp_path / "run"), read_state(tmp_path / "alone")
    assert all(tensor.dtype == torch.float64 for name, tensor in theirs.items() if tensor.dim())
    assert worst_difference(ours, theirs) <= 1e-12


@pytest.mark.parametrize("strategy", ["towers", pytest.param("hybrid", marks=pytest.mark.slow)])
def test_layers_that_never_learn_may_be_all_that_a_replica_averages(tmp_path: Path, strategy: str) -> None:
    settings = {"optimizer__freeze": ["conv1", "conv2", "conv3", "conv4", "conv5", "fc8"], "train__max_steps": 4}
    run_processes(1, _call, tmp_path / "alone", settings)
    train_with(strategy, tmp_path / "run", 4, optimizer__freeze=settings["optimizer__freeze"])
    assert worst_difference(read_state(tmp_path / "run"), read_state(tmp_path / "alone")) <= 1e-5


def die_in_backward(folder: Path, overrides: dict[str, Any]) -> str:
    """The last process is killed while the sixth update's gradients travel, after a checkpoint."""
    land, landed = collectives._Flight.land, 0

    def land_or_die(flight: collectives._Flight) -> Tensor:
        nonlocal landed
        landed += 1
        if landed == 40 and torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return land(flight)

    collectives._Flight.land = land_or_die  # type: ignore[method-assign]
    try:
        return train_tiny(folder, **overrides)
    except MachineError as error:
        return str(error)


@pytest.mark.parametrize("strategy", ["towers", pytest.param("sharded", marks=pytest.mark.slow)])
def test_a_process_that_dies_ends_the_others_and_the_run_goes_on(
    undisturbed: Path, tmp_path: Path, strategy: str
) -> None:
    world_size, settings = STRATEGIES[strategy]
    overrides = {"train__max_steps": ALL_STEPS, **settings}
    group = start_processes(world_size, die_in_backward, tmp_path / "run", overrides)
    assert group.wait(seconds=30) == [0] * (world_size - 1) + [-signal.SIGKILL]
    lines = [torch.load(group.folder / f"result-{rank}", weights_only=False) for rank in range(world_size - 1)]
    shutil.rmtree(group.folder)
    assert all("lost contact with another process" in line for line in lines)
    assert train_with(strategy, tmp_path / "run", ALL_STEPS) == ["finished"] * world_size
    assert worst_difference(read_state(tmp_path / "run"), read_state(undisturbed)) <= 1e-5


def test_where_towers_meet_may_not_change_and_stands_in_the_model(tmp_path: Path) -> None:
    apart = {"parallel__exchange_at": "none"}
    assert train_with("towers", tmp_path, 2, **apart)[0] == "finished"
    spec = read_card(tmp_path / "model").spec
    assert (spec.conv_groups, spec.fc_groups) == ((1, 2, 2, 2, 2), 2)
    assert "parallel.exchange_at" in train_with("towers", tmp_path, 4)[0]
    assert train_with("ddp", tmp_path, 4, **apart)[0] == "finished"
    assert read_model_weights(tmp_path / "model")["classifier.0.weight"].shape == (16, 8)


# -- model/, and counting ---------------------------------------------------------------------------------------------

CASES = [ddp(2), towers(2), towers(4), hybrid(2), hybrid(4, 2), hybrid(4, None, "batch_by_batch")]
COUNTED = (1, 13, 16)  # images that are evaluated


def merge_fresh(case: Case) -> tuple[bytes, bool]:
    """The file of the untrained network, and whether cutting it again gives this process's part."""
    model, partition = cut_tiny(case, start_case(case), torch.float32)
    merged = partition.merge(model.state_dict())
    whole, _ = cut_tiny(case.alone(), start_case(case.alone()), torch.float32) if not merged else (None, None)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    load_weights(model, partition.cut(merged or dict(whole.state_dict())), "test")  # type: ignore[union-attr]
    return pack_tensors(merged), all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


@pytest.fixture(scope="module")
def alone() -> tuple[tuple[bytes, bool], list[tuple[float, ...]]]:
    """What one device has for all of these cases."""
    assert len({str(case.alone()) for case in CASES}) == 1
    (found,) = run_processes(1, merge_and_evaluate, CASES[0].alone(), {number: number for number in COUNTED})
    return found  # type: ignore[no-any-return]


def merge_and_evaluate(case: Case, sizes: dict[int, int]) -> tuple[tuple[bytes, bool], list[tuple[float, ...]]]:
    return merge_fresh(case), [evaluate_cut(case, num_images, batch, False) for num_images, batch in sizes.items()]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_equal_weights_give_equal_bytes_and_each_image_counts_once(
    alone: tuple[tuple[bytes, bool], list[tuple[float, ...]]], case: Case
) -> None:
    results = run_processes(case.world_size, merge_and_evaluate, case, dict.fromkeys(COUNTED, 8))
    merged, counted = zip(*results, strict=True)
    assert merged[0][0] == alone[0][0]
    assert all(is_same for _, is_same in merged)
    for num_images, expected, *found in zip(COUNTED, alone[1], *counted, strict=True):
        assert all(result[:3] == expected[:3] for result in found), num_images
        assert found[0][0] == num_images
        assert found[0][3] == pytest.approx(expected[3], rel=1e-6)


def merge_with_defect(case: Case) -> tuple[bytes, bool]:
    """The defect: what Accelerate's save_state does, every part gets the tensors of the first."""
    Partition._cut = lambda self, name, tensor: (  # type: ignore[method-assign]
        tensor.chunk(self.mesh.num_parts, self._dim(name))[0] if self.is_cut(name, tensor) else tensor
    )
    return merge_fresh(case)


def test_comparison_notices_a_tower_with_the_others_weights() -> None:
    assert [is_same for _, is_same in run_processes(2, merge_with_defect, towers(2))] == [True, False]


def evaluate_cut(case: Case, num_images: int, batch_size: int, count_twice: bool) -> tuple[float, ...]:
    if count_twice:
        Runtime.count_once = lambda runtime, count: count  # type: ignore[method-assign]
    runtime = start_case(case)
    model, _ = cut_tiny(case, runtime, torch.float32)
    loader = tiny_loader(runtime, num_images, batch_size, training=False)
    result = evaluate(runtime, model, loader, BatchGate(runtime, skip_bad_files=False).admit)
    return (result.num_examples, result.top1, result.top5, result.loss)


def test_evaluation_refuses_to_count_for_both_towers() -> None:
    with pytest.raises(AssertionError, match="exactly once"):
        run_processes(2, evaluate_cut, towers(2), 7, 4, True)


# -- updates that must not be made ------------------------------------------------------------------------------------


def diverge_on_one_rank(case: Case, broken_rank: int) -> list[bool]:
    """Whether each of three updates changed the weights; the images of one process are broken in the second."""
    runtime = start_case(case)
    model, partition = cut_tiny(case, runtime, torch.float32)
    optimizer = build_optimizer(
        model, name="sgd", momentum=0.9, weight_decay=0.0, bias_lr_factor=1.0, bias_weight_decay=None
    )
    set_lr(optimizer, 0.1)
    forward = replicate_network(case.parallel, model, partition, compiled=False, accumulates=True, runtime=runtime)
    counters = DeviceCounters.on(runtime.device)
    changed = []
    for step, batch in enumerate(tiny_loader(runtime, 24, 8, training=True).batches(0, 3)):
        if step == 1 and runtime.rank == broken_rank:
            batch = batch._replace(images=batch.images * float("nan"))
        before = [parameter.detach().clone() for parameter in model.parameters()]
        train_step(runtime, forward, optimizer, batch, micro_batch_size=1, scale=runtime.dp_size / 8, counters=counters)
        changed.append(any(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)))
    return changed


@pytest.mark.parametrize("case", [towers(2), towers(4), hybrid(2), hybrid(4, 2)], ids=str)
def test_a_nan_in_one_process_blocks_the_update_in_all(case: Case) -> None:
    results = run_processes(case.world_size, diverge_on_one_rank, case, case.world_size - 1)
    assert results == [[True, False, False]] * case.world_size


def overflow_on_one_rank(case: Case, agree: bool) -> tuple[bool, float]:
    """Whether an update was made after a gradient of the last process overflowed, and fp16's scale after it."""
    runtime = start_case(case)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)  # type: ignore[attr-defined]
    mesh = runtime.mesh if agree else replace(runtime.mesh, part_group=None)  # the defect: each decides for itself
    runtime = replace(runtime, accelerator=SimpleNamespace(scaler=scaler), mesh=mesh)
    model, _ = cut_tiny(case, start_case(case), torch.float32)
    optimizer = build_optimizer(
        model, name="sgd", momentum=0.9, weight_decay=0.0, bias_lr_factor=1.0, bias_weight_decay=None
    )
    set_lr(optimizer, 0.1)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    scaler.scale(sum(parameter.sum() for parameter in model.parameters())).backward()
    if runtime.rank == case.world_size - 1:
        next(model.parameters()).grad[0] = float("inf")  # type: ignore[union-attr]
    runtime.update(optimizer, torch.zeros(()))
    is_same = all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    return not is_same, scaler.get_scale()


@pytest.mark.parametrize("case", [towers(2), hybrid(2)], ids=str)
def test_an_overflow_in_one_part_blocks_all_parts_and_lowers_one_scale(case: Case) -> None:
    assert run_processes(2, overflow_on_one_rank, case, True) == [(False, 4.0)] * 2
    assert run_processes(2, overflow_on_one_rank, case, False) == [(True, 8.0), (False, 4.0)]


# -- bad input --------------------------------------------------------------------------------------------------------


def refusal(case: Case) -> str:
    try:
        check_strategy(case.parallel, case.make_spec(), start_case(case))
    except UsageError as error:
        assert error.exit_code == 2  # noqa: PT017 (in a child)
        return str(error)
    finally:
        if torch.distributed.is_initialized():  # another process may still be joining this one
            torch.distributed.barrier()
    return "accepted"


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (towers(1), "needs two processes: there is one; start 2, or train the same network merged on one device with"),
        (towers(3), "needs an even number of processes: there are 3; start 2 or 4"),
        (towers(2, lrn_groups=1), "needs a network of two towers: lrn_groups is 1; leave model.* as the variant has"),
        (towers(2, fc_width=15), "the 15 outputs of fc6 are odd in number"),
        (towers(2, conv_channels=[9, 16, 16, 16, 16], conv_groups=[1, 1, 1, 2, 2], lrn=False), "outputs of conv1 are"),
        (hybrid(3), "the 16 outputs of fc6 and fc7 cannot be cut into 3 shards: "),
        (hybrid(3), "; use 2 or 4 processes, or such a parallel.shard_size"),
        (hybrid(3, 2), "parallel.shard_size 2 does not divide the 3 processes; use 1 or 3, or start 2 or 4"),
        (hybrid(2, 4), "parallel.shard_size 4 does not divide the 2 processes; use 2 or 1, or start 4"),
        (hybrid(2).with_settings(exchange_at="none"), "hybrid cuts fc6 and fc7 by outputs: here they are in groups"),
        (hybrid(1), "accepted"),
        (hybrid(2, 1), "accepted"),
        (ddp(3), "accepted"),
    ],
    ids=str,
)
def test_what_a_strategy_cannot_do_is_said_in_one_line(case: Case, words: str) -> None:
    messages = run_processes(case.world_size, refusal, case)
    assert words in messages[0]
    assert "\n" not in messages[0]
    assert messages == messages[:1] * case.world_size
