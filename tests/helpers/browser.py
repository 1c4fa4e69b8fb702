"""Headless Chromium, told by Selenium what to do, and what axe says of a page."""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
from collections.abc import Iterator
from typing import Any

import pytest

SECONDS = 20
SCHEMES = ("light", "dark")
_SERIOUS = ("serious", "critical")
_BROWSER, _DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
_PACKAGES = all(map(importlib.util.find_spec, ("selenium", "axe_selenium_python")))
needs_browser = pytest.mark.skipif(
    not (_PACKAGES and _BROWSER and _DRIVER),
    reason="needs selenium, axe-selenium-python, and chromium and chromedriver in PATH",
)


@contextlib.contextmanager
def new_browser() -> Iterator[Any]:
    """A browser that keeps what is said on its console, until the end of the block."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(_BROWSER)
    for word in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1200,1000"):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(_DRIVER))
    try:
        driver.set_script_timeout(SECONDS)
        yield driver
    finally:
        driver.quit()


def set_window(browser: Any, scheme: str = "light", width: int = 1200) -> None:
    """Say which colors the user likes, and how many pixels wide the window is."""
    colors = [{"name": "prefers-color-scheme", "value": scheme}]
    browser.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": colors})
    size = {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": width < 600}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def find(browser: Any, selector: str) -> Any:
    """The first element that a selector of CSS means."""
    return browser.find_element("css selector", selector)


def wait_for(browser: Any, script: str, *arguments: Any, seconds: float = SECONDS) -> Any:
    """What a script gives, as soon as that is true."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, seconds).until(lambda driver: driver.execute_script(script, *arguments))


def list_serious(browser: Any) -> list[tuple[str, list[str]]]:
    """What axe finds serious on a page: the rule, and the elements."""
    from axe_selenium_python import Axe

    axe = Axe(browser)
    axe.inject()
    return [
        (violation["id"], [node["html"][:100] for node in violation["nodes"]][:3])
        for violation in axe.run()["violations"]
        if violation["impact"] in _SERIOUS
    ]
