"""report.html in a browser: what is drawn, what a pointer and a keyboard do, and what axe says of it."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers.browser import SCHEMES, SECONDS, find, list_serious, needs_browser, new_browser, set_window, wait_for
from helpers.report_runs import make_full_run

from alexnet_dist.figures.vega import load_vega
from alexnet_dist.runs.past_runs import find_runs
from alexnet_dist.runs.report import write_report

pytestmark = [pytest.mark.slow, needs_browser]


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A page of one run, and one of two."""
    folder = tmp_path_factory.mktemp("pages")
    for seed in range(2):
        make_full_run(folder / "runs" / f"seed-{seed}", seed=seed)
    runs, vega = find_runs(folder / "runs"), load_vega()
    write_report(folder / "one.html", runs[:1], vega)
    write_report(folder / "two.html", runs, vega)
    return {name: folder / f"{name}.html" for name in ("one", "two")}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with new_browser() as driver:
        yield driver


def look_at(browser: Any, page: Path, scheme: str = "light", width: int = 1200) -> None:
    """Open a page, and wait for its charts."""
    set_window(browser, scheme, width)
    browser.get(page.as_uri())
    wait_for(browser, "return [...document.querySelectorAll('.chart')].every((chart) => chart.querySelector('svg'))")


def list_first_cells(browser: Any, table: str) -> list[str]:
    script = "return [...document.querySelector(arguments[0]).tBodies[0].rows].map((row) => row.cells[0].textContent)"
    return list(browser.execute_script(script, table))


@pytest.mark.parametrize("name", ["one", "two"])
def test_everything_is_drawn_without_an_error_and_nothing_is_asked_for(
    browser: Any, pages: dict[str, Path], name: str
) -> None:
    look_at(browser, pages[name])
    assert browser.get_log("browser") == []
    assert len(browser.find_elements("css selector", ".chart svg path")) > 20
    asked = browser.execute_script("return performance.getEntriesByType('resource').map((entry) => entry.name)")
    assert [address for address in asked if not address.startswith("data:")] == []
    assert browser.execute_script("return window.hacked") is None
    broken = "return [...document.images].filter((image) => !image.naturalWidth).length"
    assert browser.execute_script(broken) == 0


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", ["one", "two"])
def test_axe_finds_nothing_serious(browser: Any, pages: dict[str, Path], name: str, scheme: str) -> None:
    look_at(browser, pages[name], scheme)
    assert list_serious(browser) == []


def test_a_pointer_is_told_the_values_and_a_legend_picks_a_curve(browser: Any, pages: dict[str, Path]) -> None:
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.support.ui import WebDriverWait

    look_at(browser, pages["one"])
    chart = find(browser, "#chart-loss svg")
    browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", chart)
    ActionChains(browser).move_to_element(chart).move_by_offset(10, 5).perform()
    told = "#vg-tooltip-element.visible"
    WebDriverWait(browser, SECONDS).until(lambda driver: driver.find_elements("css selector", told))
    assert "cross-entropy" in find(browser, told).text
    faint = "return document.querySelectorAll('#chart-loss .mark-line path[opacity=\"0.12\"]').length"
    assert browser.execute_script(faint) == 0
    ActionChains(browser).move_to_element(find(browser, "#chart-loss .role-legend-label text")).click().perform()
    WebDriverWait(browser, SECONDS).until(lambda driver: driver.execute_script(faint) == 3)


def test_a_keyboard_reaches_and_does_everything(browser: Any, pages: dict[str, Path]) -> None:
    from selenium.webdriver.common.keys import Keys

    look_at(browser, pages["one"])
    find(browser, "body").send_keys(Keys.TAB)
    assert browser.switch_to.active_element.get_attribute("class") == "skip"
    table = "#classes ~ .wide table"
    before = list_first_cells(browser, table)
    count = find(browser, f"{table} th:nth-child(3) button")
    count.send_keys(Keys.ENTER)
    assert find(browser, f"{table} th:nth-child(3)").get_attribute("aria-sort") == "ascending"
    rising = list_first_cells(browser, table)
    assert rising[0] == before[2]  # half of that class was right
    count.send_keys(Keys.SPACE)
    assert list_first_cells(browser, table) == rising[::-1]
    find(browser, "summary").send_keys(Keys.ENTER)
    assert find(browser, "details").get_attribute("open") is not None
    color = "return getComputedStyle(document.body).backgroundColor"
    assert browser.execute_script(color) == "rgb(255, 255, 255)"
    find(browser, "button.theme").send_keys(Keys.ENTER)
    assert browser.execute_script(color) == "rgb(18, 22, 27)"


@pytest.mark.parametrize("name", ["one", "two"])
def test_a_phone_shows_all_of_it(browser: Any, pages: dict[str, Path], name: str) -> None:
    look_at(browser, pages[name], width=390)
    assert browser.execute_script("return document.documentElement.scrollWidth") <= 390
    ends = "return [...document.querySelectorAll('.chart svg')].map((chart) => chart.getBoundingClientRect().right)"
    assert max(browser.execute_script(ends)) <= 390


def test_paper_is_white_and_has_what_was_folded(browser: Any, pages: dict[str, Path]) -> None:
    look_at(browser, pages["one"], "dark")
    paper = base64.b64decode(browser.execute_cdp_cmd("Page.printToPDF", {})["data"])
    assert paper.startswith(b"%PDF")
    assert browser.execute_script("return [...document.querySelectorAll('details')].every((part) => part.open)")
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": "print"})
    assert browser.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"media": ""})
