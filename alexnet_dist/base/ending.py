"""The end of a process that cannot end in order."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import sys
import threading
import time
from typing import NoReturn

ERROR_FILE = "TORCHELASTIC_ERROR_FILE"  # in which torch's launchers look for what ended a worker
TAKES_LAST_LINE = "ALEXNET_DIST_TAKES_LAST_LINE"  # set by `alexnet-dist launch`, which prints what it finds there


def leave_line(line: str) -> bool:
    """Leave the line with which this process ends where its launcher looks for it; whether the launcher prints it.

    torchrun shows it as the cause, in the place of advice on how to get a traceback. `alexnet-dist launch` prints it
    when all workers have ended: nothing then comes after it.
    """
    path = os.environ.get(ERROR_FILE, "")
    facts = {"message": line, "extraInfo": {"py_callstack": line, "timestamp": str(int(time.time()))}}
    try:
        with open(path, "w", encoding="utf-8") as file:
            json.dump({"message": facts}, file)
    except OSError:  # not launched
        return False
    return TAKES_LAST_LINE in os.environ


def print_line(line: str) -> None:
    """Print a line to stderr, in the place of one that moves there; somebody who has gone is told nothing."""
    with contextlib.suppress(OSError, ValueError):
        clear = "\r\x1b[K" if sys.stderr.isatty() else ""
        sys.stderr.write(f"{clear}{line}\n")
        sys.stderr.flush()


def print_last(line: str) -> None:
    """Print the line with which this process ends, or leave it to the launcher that prints it last of all."""
    if not leave_line(line):
        print_line(line)


def end_in_order(code: int) -> NoReturn:
    """End this process when all has been called that wants to be, and let Python take nothing apart after that.

    Threads of gloo and of a store outlive Python. One that lets go of a tensor meanwhile aborts the process
    (pytorch/pytorch#179291), and a run that has ended well would count as a failed one.
    """
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
    leave(code)


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
