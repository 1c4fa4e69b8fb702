"""The end of a process that cannot end in order."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import NoReturn


def leave(code: int) -> NoReturn:
    """End this process now; of what it would remove at an orderly end, remove what else stays for ever."""
    folder = None
    if "multiprocessing.process" in sys.modules:  # the folder of sockets between processes
        folder = getattr(sys.modules["multiprocessing.process"].current_process(), "_config", {}).get("tempdir")
    if folder:
        import shutil

        shutil.rmtree(folder, ignore_errors=True)
    for name, module in list(sys.modules.items()):
        if name.startswith("__autograph_generated_file"):  # DALI's
            with contextlib.suppress(OSError, TypeError):
                os.unlink(str(module.__file__))
    os._exit(code)
