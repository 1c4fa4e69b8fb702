"""Imported by the server of decoding processes before anything else.

It ends with the training process (Linux): otherwise it would notice only when it has imported torch, seconds later. And
it leaves the words to the training process where the machine gives it no process or file: one line, not a traceback.
"""

import ctypes
import platform
import signal
import sys
from types import TracebackType

PR_SET_PDEATHSIG = 1  # of sys/prctl.h


def _say(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    if not issubclass(kind, OSError | EOFError | MemoryError):
        sys.__excepthook__(kind, error, trace)


sys.excepthook = _say
if platform.system() == "Linux":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
