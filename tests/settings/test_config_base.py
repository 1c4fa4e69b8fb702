"""`base:` in a configuration: what a file says of another one."""

from __future__ import annotations

from pathlib import Path

import pytest

from alexnet_dist.base.errors import UsageError
from alexnet_dist.settings.reader import dump_config, load_config
from alexnet_dist.settings.schema import Config

BOTTOM = (
    "seed: 7\n"
    "data: {source: synthetic, synthetic_images: 40}\n"
    "optimizer: {name: adam, lr: 0.001}\n"
    "schedule: {name: step, step_epochs: 3}\n"
    "train: {epochs: 2, global_batch_size: 8}\n"
)


def load(folder: Path, texts: dict[str, str], **given: object) -> Config:
    """The settings that the file `top` gives, among others beside it."""
    for name, text in texts.items():
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8")
    return load_config(str(folder / "top.yaml"), {key.replace("__", "."): value for key, value in given.items()})


def refusal(folder: Path, texts: dict[str, str]) -> str:
    """The one line with which it is refused."""
    with pytest.raises(UsageError) as caught:
        load(folder, texts)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("name", ["bottom", "bottom.yaml"])
def test_a_file_changes_what_its_base_says(tmp_path: Path, name: str) -> None:
    config = load(tmp_path, {"top": f"base: {name}\noptimizer: {{lr: 0.5}}\n", "bottom": BOTTOM})
    assert (config.optimizer.lr, config.optimizer.name, config.seed) == (0.5, "adam", 7)
    assert config.output_dir == str(Path("runs") / "top")


def test_the_command_line_wins_over_all(tmp_path: Path) -> None:
    texts = {"top": "base: middle\n", "middle": "base: bottom\nseed: 8\ntrain: {epochs: 3}\n", "bottom": BOTTOM}
    config = load(tmp_path, texts, seed=9)
    assert (config.seed, config.train.epochs, config.train.global_batch_size) == (9, 3, 8)


def test_a_shipped_configuration_can_be_a_base(tmp_path: Path) -> None:
    config = load(tmp_path, {"top": "base: smoke\nseed: 5\n"})
    smoke = load_config("smoke", {"seed": 5, "output_dir": str(Path("runs") / "top")})
    assert config == smoke


@pytest.mark.parametrize(
    ("above", "key", "expected"),
    [
        ("train: {max_steps: 5}", "train.epochs", None),  # epochs and max_steps replace each other
        ("schedule: {name: constant}", "schedule.step_epochs", 30),  # a period goes with its schedule
    ],
)
def test_what_is_replaced_below_is_left_out(tmp_path: Path, above: str, key: str, expected: object) -> None:
    config = load(tmp_path, {"top": f"base: bottom\n{above}\n", "bottom": BOTTOM})
    section, name = key.split(".")
    assert getattr(getattr(config, section), name) == expected


def test_what_is_printed_needs_no_base(tmp_path: Path) -> None:
    config = load(tmp_path, {"top": "base: bottom\nseed: 3\n", "bottom": BOTTOM})
    (tmp_path / "printed.yaml").write_text(dump_config(config), encoding="utf-8")
    (tmp_path / "bottom.yaml").unlink()
    assert load_config(str(tmp_path / "printed.yaml"), {}) == config


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        ({"top": "base: top\n"}, "its own base"),
        ({"top": "base: bottom\n", "bottom": "base: top\n"}, "its own base"),
        ({"top": "base: nothing_like_it\n"}, "no configuration 'nothing_like_it'"),
        ({"top": "base: [bottom]\n", "bottom": BOTTOM}, "wrong value for base"),
        ({"top": "base: bottom\n", "bottom": BOTTOM.replace("seed", "sead")}, "bottom.yaml:1"),
        ({"top": "base: bottom\noptimizer: {lr: -1}\n", "bottom": BOTTOM}, "top.yaml:2"),
    ],
)
def test_a_base_that_cannot_be_is_refused_where_it_stands(tmp_path: Path, texts: dict[str, str], expected: str) -> None:
    assert expected in refusal(tmp_path, texts)
