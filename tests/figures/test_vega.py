"""The script that draws charts: linked once, kept, and nobody's error where it cannot be had."""

from __future__ import annotations

from pathlib import Path

import pytest

from alexnet_dist.base.errors import MachineError
from alexnet_dist.figures import vega


@pytest.fixture(autouse=True)
def _empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_without_the_package_the_line_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vega, "is_installed", lambda name: False)
    assert vega.begin_vega() is None
    with pytest.raises(MachineError, match="pip install vl-convert-python"):
        vega.load_vega()


def test_a_script_that_was_cut_short_is_not_used(tmp_path: Path) -> None:
    place = vega._place()
    place.parent.mkdir(parents=True)
    place.write_text("half of it")
    assert vega.find_vega() is None
    place.write_text("all of it;window.vegaLite=x;")
    assert vega.find_vega() == vega.load_vega() == "all of it;window.vegaLite=x;"
    assert vega.begin_vega() is None


@pytest.mark.heavy
def test_the_script_is_linked_by_a_process_of_its_own_and_kept() -> None:
    linking = vega.begin_vega()
    assert linking is not None
    assert linking.wait(timeout=120) == 0
    script = vega.find_vega()
    assert script is not None
    assert 500_000 < len(script) < 2_000_000
    assert "</script" not in script
