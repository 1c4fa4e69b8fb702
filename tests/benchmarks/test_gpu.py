"""The lease of a GPU: rows are kept, a second start goes on, and what cannot be is said before anything is measured."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import gpu
import pytest
import torch

from alexnet_dist.base.errors import MachineError


class Place:
    """What a section asks of a runtime."""

    device = torch.device("cpu")
    precision = "bf16"


@pytest.fixture
def lease(tmp_path: Path) -> gpu.Lease:
    """A lease of a minute, on a CPU."""
    options = argparse.Namespace(out=tmp_path, tiny=True, data_root=None)
    place: Any = Place()
    return gpu.Lease(options, place, time.time() + 60)


def rows_of(lease: gpu.Lease) -> list[dict[str, Any]]:
    return gpu.read_rows(lease.options.out / gpu.ROWS)


def test_a_second_start_goes_on_after_the_section_that_broke_the_first(lease: gpu.Lease) -> None:
    lease.say("environment", cpu="a CPU")
    lease.say("steps", event="begin")
    with open(lease.options.out / gpu.ROWS, "a") as file:
        file.write('{"section": "st')  # the process died in the middle of a line
    assert [row["section"] for row in rows_of(lease)] == ["environment", "steps"]
    lease.say("ceilings", what="copy")
    assert [row["section"] for row in rows_of(lease)] == ["environment", "steps", "ceilings"]
    assert list(gpu.list_rest(["ceilings", "steps", "profile"], rows_of(lease))) == ["ceilings", "profile"]


def test_a_section_that_fails_says_so_and_the_next_one_runs(lease: gpu.Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(lease: gpu.Lease) -> None:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(gpu, "SECTIONS", {"bad": (fail, 5), "good": (lambda lease: lease.say("good", value=1), 5)})
    for name in gpu.SECTIONS:
        gpu.run_section(lease, name)
    rows = rows_of(lease)
    assert any(row.get("failed") == "RuntimeError: no kernel image" for row in rows if row["section"] == "bad")
    assert [row.get("event") or row["value"] for row in rows if row["section"] == "good"] == ["begin", 1, "end"]


def test_a_section_without_time_is_named(lease: gpu.Lease, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "SECTIONS", {"long": (lambda lease: lease.say("long", value=1), 500)})
    lease.options.tiny = False
    gpu.run_section(lease, "long")
    (row,) = rows_of(lease)
    assert row["skipped"].endswith("s are left, 500 are wanted")


@pytest.mark.parametrize("tiny", [True, False])
def test_what_cannot_be_measured_or_kept_is_refused_first(tmp_path: Path, tiny: bool) -> None:
    (tmp_path / "file").write_text("")
    options = argparse.Namespace(out=tmp_path / "file", tiny=tiny, only=[], seconds=1, data_root=None)
    with pytest.raises(MachineError, match="cannot write the figures" if tiny else "no CUDA device"):
        gpu.measure(options)
