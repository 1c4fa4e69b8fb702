"""`estimate`: what it prints, draws and writes, what it refuses, and what it takes from doctor's probe."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers.pages import read_commands

from alexnet_dist.cli.main import run
from alexnet_dist.costs.measure import split_times
from alexnet_dist.models import make_spec, spec_to_dict

pytestmark = pytest.mark.heavy

TOLD = ["--images_per_second", "1000", "--link_gbits", "1"]
TINY = ["--model.image_size", "64", "--model.conv_channels", "[8,16,16,16,16]", "--model.fc_width", "16"]


def estimate(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    assert run("estimate", [*words, "--format", "json"]) == 0
    values: dict[str, Any] = json.loads(capsys.readouterr().out)
    return values


def find(values: dict[str, Any], processes: int, strategy: str) -> dict[str, Any]:
    (row,) = [row for row in values["predictions"] if (row["processes"], row["strategy"]) == (processes, strategy)]
    found: dict[str, Any] = row
    return found


def test_every_strategy_from_1_to_1024_processes(capsys: pytest.CaptureFixture[str]) -> None:
    values = estimate(capsys, *TOLD)
    assert sorted({row["processes"] for row in values["predictions"]}) == [2**power for power in range(11)]
    names = {row["strategy"] for row in values["predictions"] if row["processes"] == 2}
    assert names == {"ddp fp32", "ddp bf16", "towers bf16", "hybrid bf16"}
    assert find(values, 1, "ddp fp32")["images_per_second"] == pytest.approx(1000)
    assert len(values["advice"]) == 11


def test_settings_change_what_is_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    whole = estimate(capsys, *TOLD, "--processes", "2")
    other = estimate(capsys, *TOLD, "--processes", "2", "--model.variant", "torchvision")
    assert find(whole, 2, "ddp fp32")["bytes_sent"] == 4 * 60_965_224
    assert find(other, 2, "ddp fp32")["bytes_sent"] == 4 * 61_100_840
    assert "no two towers" in other["notes"][0]
    few = estimate(capsys, *TOLD, "--processes", "2", "--images_per_process", "16", "--exchange", "fp32")
    assert find(few, 2, "ddp fp32")["images"] == 32
    assert find(few, 2, "towers fp32")["bytes_sent"] == 2 * 16 * (2 * 28_288 + 1000) * 4
    packed = estimate(capsys, *TOLD, "--processes", "4", "--gradient_compression", "bf16")
    assert "towers bf16, gradients bf16" in {row["strategy"] for row in packed["predictions"]}


@pytest.mark.heavy
def test_the_speed_of_one_process_is_measured_here(capsys: pytest.CaptureFixture[str]) -> None:
    values = estimate(capsys, "--link_gbits", "1", "--images_per_process", "4", "--processes", "1", "2", *TINY)
    assert values["compute_from"] == "measured here"
    assert min(values["compute"].values()) >= 0  # one of the two may be lost in the noise, and not their sum
    alone = find(values, 1, "ddp fp32")
    assert 1e-4 < alone["step_seconds"] < 10


def test_a_table_and_a_reason(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("estimate", [*TOLD, "--processes", "2", "--images_per_process", "16"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "network   paper, 60,965,224 parameters, 1,000 classes"
    assert any(line.startswith("2          ddp fp32") and " 243.9 " in line for line in lines)
    assert re.fullmatch(r"2 processes: (towers|hybrid) bf16 \(ddp fp32 sends 243\.9 MB a step .*\)", lines[-1])


FAILING = ["--failure_hours", "5000", "--processes", "1", "64", "512"]


@pytest.mark.heavy
def test_figures_are_drawn(tmp_path: Path) -> None:
    drawn = {"figure": tmp_path / "figure.png", "goodput_figure": tmp_path / "goodput.png"}
    options = [word for name, path in drawn.items() for word in (f"--{name}", str(path))]
    assert run("estimate", [*TOLD, *FAILING, *options]) == 0
    for path in drawn.values():
        assert path.read_bytes().startswith(b"\x89PNG")
        assert path.stat().st_size > 10_000


def test_machines_that_fail_cost_speed(capsys: pytest.CaptureFixture[str]) -> None:
    values = estimate(capsys, *TOLD, *FAILING)
    rows = values["goodput"]
    assert [row["machines"] for row in rows] == [1, 64, 512]
    assert rows[2]["failure_seconds"] == pytest.approx(5000 * 3600 / 512)
    assert rows[0]["goodput"] > rows[1]["goodput"] > rows[2]["goodput"] > 0.9
    fastest = max(one["images_per_second"] for one in values["predictions"] if one["processes"] == 512)
    assert rows[2]["images_per_second"] == pytest.approx(fastest * rows[2]["goodput"])
    assert run("estimate", [*TOLD, *FAILING]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines[-4:-1]] == [["1", "1"], ["64", "64"], ["512", "512"]]


def test_a_figure_without_matplotlib_names_the_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert run("estimate", [*TOLD, "--processes", "2", "--figure", str(tmp_path / "figure.png")]) == 5
    assert "pip install matplotlib" in capsys.readouterr().err


def test_published_runs_stand_beside_the_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("estimate", ["--published"]) == 0
    printed = capsys.readouterr().out
    for name in ("8 A100-PCIe", "GradientFlow", "DGX-1", "K80"):
        assert name in printed
    assert "held: within 5 points" in printed
    assert re.search(r"OPT-175B, .* 59%  +97\.\d% +restarts of \d\.\d h", printed)
    assert max(map(len, printed.splitlines()[:12])) <= 80


# -- a probe ----------------------------------------------------------------------------------------------------------


def write_probe(path: Path, **changes: Any) -> Path:
    values: dict[str, Any] = {
        "network": {"variant": "torchvision", "spec": spec_to_dict(make_spec("torchvision", num_classes=10))},
        "images_per_process": 32,
        "precision": "fp32",
        "compute": {"seconds_per_image": 0.01, "seconds_per_update": 0.1},
        "links": {
            "between": {"bytes_per_second": 1.25e8, "latency": 1e-4, "computed_seconds_per_byte": 3e-9},
            "inside": {"bytes_per_second": 1e9, "latency": 1e-5},
            "between_compressed": {"bytes_per_second": 1e8},
            "inside_compressed": {"bytes_per_second": 5e8},
            "per_machine": 2,
        },
    }
    path.write_text(json.dumps({**values, **changes}))
    return path


def test_a_probe_says_what_network_speed_and_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = estimate(capsys, "--probe", str(write_probe(tmp_path / "probe.json")), "--processes", "1", "4")
    assert values["network"]["variant"] == "torchvision"
    assert values["links"]["per_machine"] == 2
    assert values["exchange"] == "fp32"
    assert find(values, 1, "ddp fp32")["step_seconds"] == pytest.approx(0.1 + 32 * 0.01)


def test_a_told_link_wins_over_the_probe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    probe = str(write_probe(tmp_path / "probe.json"))
    values = estimate(capsys, "--probe", probe, "--link_gbits", "100", "--processes", "4")
    links = values["links"]
    assert links["between"] == {"bytes_per_second": 100e9 / 8, "latency": 1e-4, "computed_seconds_per_byte": 3e-9}
    assert links["between_compressed"] is None  # what was probed is not true of the told link
    assert (links["inside"]["bytes_per_second"], links["inside_compressed"]["bytes_per_second"]) == (1e9, 5e8)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["--images_per_second", "1000"],
            "error: the speed of the network between machines is missing (command line); give --link_gbits",
        ),
        ([*TOLD, "--processes", "0"], "error: --processes has 0"),
        ([*TOLD, "--images_per_process", "0"], "error: --images_per_process is 0"),
        (["--images_per_second", "-1", "--link_gbits", "1"], "error: --images_per_second is -1"),
        ([*TOLD, "--failure_hours", "0"], "error: --failure_hours is 0"),
        ([*TOLD, "--failure_hours", "9", "--spares", "-1"], "error: --spares is negative"),
        ([*TOLD, "--failure_hours", "1e-4"], "error: the machines fail too often: a failure every"),
        ([*TOLD, "--goodput_figure", "made.png"], "error: --goodput_figure needs machines that fail"),
        ([*TOLD, "--processes_per_machine", "8"], "error: --inner_gbits is missing"),
        (
            ["--images_per_second", "9", "--inner_gbits", "100", "--processes_per_machine", "8"],
            "error: --link_gbits is missing (command line): 1024 processes need more than one machine of 8",
        ),
        (["--link_gbit", "1"], "error: unknown option --link_gbit (command line); did you mean --link_gbits?"),
        (["--probe", "missing.json"], "error: not a probe (missing.json): FileNotFoundError"),
        (["--probe", "missing.json", "--model.variant", "paper"], "error: --model.variant has no effect"),
    ],
)
def test_a_mistake_is_one_line(words: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("estimate", words) == 2
    printed = capsys.readouterr().err
    assert printed.startswith(line)
    assert printed.count("\n") == 1


@pytest.mark.parametrize(
    "change",
    [{"compute": {}}, {"links": {"speed": 1}}, {"links": {"between": 1.25e8, "inside": 1e9}}, {"network": None}],
)
def test_a_damaged_probe_is_refused(tmp_path: Path, change: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run("estimate", ["--probe", str(write_probe(tmp_path / "probe.json", **change))]) == 2
    assert capsys.readouterr().err.startswith("error: not a probe")


def test_several_processes_are_sent_to_doctor(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert run("estimate", TOLD) == 2
    assert "what doctor measured" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("other", "expected"),
    [
        ((2, 0.14), (0.02, 0.1)),
        ((20, 0.5), (0.02, 0.1)),
        ((2, 0.06), (0.03, 0.0)),  # noise: an update cannot cost less than nothing
        ((2, 0.02), (0.03, 0.0)),
        ((2, 0.4), (0.0, 0.3)),  # nor an image
    ],
)
def test_two_sizes_tell_images_from_updates(other: tuple[int, float], expected: tuple[float, float]) -> None:
    compute = split_times(other, (10, 0.3))
    assert (compute.seconds_per_image, compute.seconds_per_update) == pytest.approx(expected)
    assert compute.step_seconds(10) == pytest.approx(0.3)


@pytest.mark.parametrize("words", read_commands("estimate"), ids=" ".join)
def test_the_commands_of_the_pages_run(words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_probe(tmp_path / "doctor.json")
    if not {"--images_per_second", "--probe", "--published"} & set(words):
        words = [*words, "--images_per_second", "1000"]  # measuring takes seconds, and another test does it
    assert run("estimate", words) == 0
