"""Imported by the server of decoding processes before anything else: it ends with the training process (Linux).

It would notice otherwise only when it has imported torch, seconds later.
"""

import ctypes
import platform
import signal

PR_SET_PDEATHSIG = 1  # of sys/prctl.h

if platform.system() == "Linux":
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
