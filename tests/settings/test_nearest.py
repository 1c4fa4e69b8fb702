"""Which setting an unknown name is taken for."""

from __future__ import annotations

import pytest

from alexnet_dist.settings.nearest import ELSEWHERE, HABITS, explain_elsewhere, find_nearest
from alexnet_dist.settings.schema import Config, walk_fields

KEYS = [key for key, _ in walk_fields(Config)]
OPTIONS = {"config", "new", "resume_from", "profile", "print_config", "model", "out", "batch_size", "topk", "weights"}
SECTIONS = ["model", "data", "optimizer"]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--batch-size", "train.global_batch_size"),
        ("-b", "train.global_batch_size"),
        ("--lr", "optimizer.lr"),
        ("--epochs", "train.epochs"),
        ("--model", "model.variant"),
        ("--data", "data.root"),
        ("--data-dir", "data.root"),
        ("--amp", "precision"),
        ("--workers", "data.workers"),
        ("--wd", "optimizer.weight_decay"),
        ("--momentum", "optimizer.momentum"),
        ("--resume", "resume_from"),
        ("--pretrained", "model.pretrained"),
        ("--imgsz", "model.image_size"),
        ("--output", "output_dir"),
        ("--Optimizer.LR", "optimizer.lr"),
        ("--optimizer.lrr", "optimizer.lr"),
        ("--optimizer.learning_rate", "optimizer.lr"),
        ("optimiser.lr", "optimizer.lr"),
        ("--data.rot", "data.root"),
        ("--name", "output_dir"),
        ("--patience", "train.early_stop"),
        ("--update-freq", "train.micro_batch_size"),
        ("--no-cuda", "device"),
        ("--bach-size", "train.global_batch_size"),
        ("--ouput_dir", "output_dir"),
        ("--data.path", "data.root"),
        ("--data.batch_size", "train.global_batch_size"),
        ("--data.num_wokers", "data.workers"),
        ("--train.learning_rate", "optimizer.lr"),
        ("--optimizer.type", "optimizer.name"),
        ("--model.name", "model.variant"),
        ("--log.interval", "log.every_steps"),
        ("--augment.flip", "augment.horizontal_flip"),
        ("--trainer.max_epochs", "train.epochs"),
    ],
)
def test_habits_and_slips_name_the_setting(word: str, meant: str) -> None:
    assert find_nearest(word, [*KEYS, "resume_from"]) == meant


@pytest.mark.parametrize(
    "word",
    [
        "--quiet",
        "--profile",
        "--deterministic",
        "--version",
        "--dry_run",
        "--tracking.save_code",
        "--model.nonsense",
        "--mixup",
        "--clip-grad",
        "--crop-pct",
    ],
)
def test_nothing_is_suggested_where_nothing_is_near(word: str) -> None:
    assert find_nearest(word, KEYS, SECTIONS) is None


def test_a_section_is_a_suggestion_where_sections_are_asked_for() -> None:
    assert find_nearest("optimiser", KEYS, SECTIONS) == "optimizer"
    assert find_nearest("optimiser", KEYS) == "optimizer.name"


@pytest.mark.parametrize(
    ("word", "where"),
    [
        ("--gpus", "-dist launch"),
        ("--nproc-per-node", "-dist launch"),
        ("--eval", "evaluate"),
        ("--val-batch-size", "no batch size"),
    ],
)
def test_what_is_no_option_here_is_told_elsewhere(word: str, where: str) -> None:
    assert where in (explain_elsewhere(word) or "")
    assert explain_elsewhere("--lr") is None
    assert set(ELSEWHERE).isdisjoint(KEYS)


def test_every_habit_leads_somewhere() -> None:
    assert set(HABITS) <= set(KEYS) | OPTIONS
    assert [name for name, habits in HABITS.items() if name in habits] == []
