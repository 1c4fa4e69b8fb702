"""The program that draws a page's charts in the browser: Vega, Vega-Lite and vega-embed, as vl-convert carries them.

vl-convert links them into one script, which takes some seconds and keeps Python waiting. So it is done once for a user
and a release, in a process of its own where a training goes on, and is kept in the cache folder.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

from alexnet_dist.base.durable import write_file
from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.extras import import_installed, is_installed
from alexnet_dist.base.places import find_cache_dir

PACKAGE, MODULE = "vl-convert-python", "vl_convert"
ENDS_WITH = "window.vegaLite="  # near the end of a script that is whole
LAST_LETTERS = 200


def find_vega() -> str | None:
    """The script, where it has been linked already."""
    try:
        text = _place().read_text(encoding="utf-8")
    except (OSError, ValueError, ImportError):
        return None
    return text if ENDS_WITH in text[-LAST_LETTERS:] else None


def load_vega() -> str:
    """The script; it is linked and kept where that has not been done.

    Raises:
        MachineError: vl-convert is not installed, or cannot be used.
    """
    found = find_vega()
    if found is not None:
        return found
    if not is_installed(MODULE):
        raise MachineError(f"{PACKAGE} is not installed", remedy=f"pip install {PACKAGE}")
    try:
        text = str(import_installed(MODULE).javascript_bundle())
    except ValueError as error:
        raise MachineError(f"{PACKAGE} cannot be used", why=str(error)) from None
    with contextlib.suppress(MachineError, OSError):  # a home that cannot be written
        _place().parent.mkdir(parents=True, exist_ok=True)
        write_file(_place(), text.encode())
    return text


def explain_missing() -> str:
    """Why a page has no charts, and what gives it some."""
    what = "Vega was not ready" if is_installed(MODULE) else f"Vega is not installed: pip install {PACKAGE}"
    return f"No charts: {what}; alexnet-dist report RUN writes the page with them."


def begin_vega() -> subprocess.Popen[bytes] | None:
    """Start to link the script, in a process of its own; None where it is there, or cannot be had."""
    if find_vega() is not None or not is_installed(MODULE):
        return None
    silent, path = subprocess.DEVNULL, os.pathsep.join(filter(None, sys.path))
    words = [sys.executable, "-c", f"from {__name__} import load_vega; load_vega()"]
    try:
        return subprocess.Popen(
            words, stdin=silent, stdout=silent, stderr=silent, env={**os.environ, "PYTHONPATH": path}
        )
    except OSError:
        return None


def _place() -> Path:
    return find_cache_dir(None) / "vega" / f"vl-convert-{version(PACKAGE)}.js"
