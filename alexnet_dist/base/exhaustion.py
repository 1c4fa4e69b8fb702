"""What a machine may run out of at any place: memory, threads, open files, space. One line and one remedy for each."""

from __future__ import annotations

import errno
import sys

from alexnet_dist.base.disk_errors import name_reason, name_remedy
from alexnet_dist.base.errors import AlexNetDistError, MachineError, MemoryExhaustedError

NO_MEMORY = (
    *("can't allocate memory", "cannot allocate memory", "not enough memory", "failed to map segment"),
    *("std::bad_alloc", "out of memory"),
)
NO_THREAD = ("can't start new thread", "resource temporarily unavailable", "pthread_create failed")
NO_FILE = ("too many open files",)
TOO_LONG = ("file too large",)
FAILED_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO)


def explain_exhaustion(error: BaseException, less: str = "free some memory") -> AlexNetDistError | None:
    """The line for an error that says the machine has no more of something; None for any other error.

    Args:
        error: what was caught, wherever.
        less: how to need less memory.
    """
    seen: set[int] = set()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        line = _explain(cause, less)
        if line is not None:
            return line
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return None


def _explain(error: BaseException, less: str) -> AlexNetDistError | None:
    number = error.errno if isinstance(error, OSError) else None
    text = str(error).lower() if isinstance(error, OSError | RuntimeError | ImportError) else ""
    first = next(iter(str(error).strip().splitlines()), "") or type(error).__name__
    is_memory = isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
    if is_memory or number == errno.ENOMEM or any(sign in text for sign in NO_MEMORY):
        remedy = "raise the limit: ulimit -v unlimited" if _limit("RLIMIT_AS", "-v", "") else less
        return MemoryExhaustedError("out of memory", why=_limit("RLIMIT_AS", "-v", first), remedy=remedy)
    if number in (errno.EMFILE, errno.ENFILE) or any(sign in text for sign in NO_FILE):
        why, remedy = _limit("RLIMIT_NOFILE", "-n", first), "raise the limit, as with ulimit -n 4096"
        if isinstance(error, OSError) and number == errno.ENFILE:  # the machine's limit, not this process's
            why, remedy = first, name_remedy(error)
        return MachineError("too many open files", why=why, remedy=remedy)
    if number == errno.EAGAIN or any(sign in text for sign in NO_THREAD):
        why = _limit("RLIMIT_NPROC", "-u", first)
        return MachineError(
            "no further thread or process can be started", why=why, remedy="end some, or raise ulimit -u"
        )
    if number == errno.EFBIG or any(sign in text for sign in TOO_LONG):
        why = _limit("RLIMIT_FSIZE", "-f", first)
        return MachineError(
            "a file may not grow", where=_name(error), why=why, remedy="raise the limit: ulimit -f unlimited"
        )
    if isinstance(error, OSError) and number in FAILED_DISK:
        remedy = name_remedy(error, "write to another disk")
        return MachineError("a disk does not take more", where=_name(error), why=name_reason(error), remedy=remedy)
    return None


def _name(error: BaseException) -> str:
    return str(getattr(error, "filename", None) or "")


def _limit(name: str, option: str, otherwise: str) -> str:
    """A limit of this process as the shell shows it, or what the error says where there is none."""
    if sys.platform == "win32":
        return otherwise
    import resource

    soft = resource.getrlimit(getattr(resource, name))[0]
    if soft == resource.RLIM_INFINITY:
        return otherwise
    return f"{otherwise[:80]}; ulimit {option} is {soft // 1024 if name in ('RLIMIT_AS', 'RLIMIT_FSIZE') else soft}"
