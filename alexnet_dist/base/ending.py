"""The end of a process that cannot end in order."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """End this process now; of what it would remove at an orderly end, remove what else stays for ever."""
    util = sys.modules.get("multiprocessing.util")
    # Its own finalizer removes the folder of sockets, and knows whose it is: a child only inherits its name.
    for finalizer in list(getattr(util, "_finalizer_registry", {}).values()):
        if getattr(finalizer, "_callback", None) is getattr(util, "_remove_temp_dir", leave):
            with contextlib.suppress(OSError):
                finalizer()
    for name, module in list(sys.modules.items()):
        if name.startswith("__autograph_generated_file"):  # DALI's
            with contextlib.suppress(OSError, TypeError):
                os.unlink(str(module.__file__))
    os._exit(code)
