"""How this program was started: by a script of launch/, as a module, or installed. It shows commands in that form."""

from __future__ import annotations

import contextlib
import shutil
import sys
from pathlib import Path

from alexnet_dist.base.notebook import is_notebook
from alexnet_dist.base.text import quote_word


def name_command(verb: str) -> str:
    """The beginning of a command line of a verb; in a notebook, of a cell that runs it."""
    if is_notebook():  # whose environment need not be active
        is_found = Path(shutil.which("alexnet-dist") or "").parent == Path(sys.executable).parent
        return f"!alexnet-dist {verb}" if is_found else f"!{quote_word(sys.executable)} -m alexnet_dist {verb}"
    script = _find_script(verb)
    if script is not None:
        return f"python {quote_word(script)}"
    is_module = Path(sys.argv[0]).parts[-2:] == ("alexnet_dist", "__main__.py")
    return f"python -m alexnet_dist {verb}" if is_module else f"alexnet-dist {verb}"


def name_program(verb: str) -> str:
    """The same for a launcher, which starts Python by itself: a script, or a module."""
    script = _find_script(verb)
    return quote_word(script) if script is not None else f"-m alexnet_dist {verb}"


def _find_script(verb: str) -> Path | None:
    started = Path(sys.argv[0])
    if started.parent.name != "launch" or started.suffix != ".py":
        return None
    script = started.parent / f"{verb}.py"
    with contextlib.suppress(ValueError, OSError):  # the folder that one stands in may be gone
        return script.relative_to(Path.cwd())  # as short as one would type it
    return script
