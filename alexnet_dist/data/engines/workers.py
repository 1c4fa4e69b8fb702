"""Where decoding processes come from, and how they end.

They are forked from a server that does nothing else (Python's `forkserver`), not from the training process: a fork of a
process with threads can stop for ever on a lock that some thread held, and its child would keep the sockets of the
process group and the lock of the run folder open. No torch here, so that the server starts while the training process
still imports it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import multiprocessing.connection
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from functools import partial
from multiprocessing import util
from multiprocessing.context import BaseContext
from typing import Any

from alexnet_dist.base.errors import MachineError

PRELOADED = ["alexnet_dist.data.engines.worker_server", "alexnet_dist.data.engines.torchvision"]
FILES_PER_WORKER, SPARE_FILES = 5, 6  # pipes, sockets and sentinels of a decoding process; what else is opened
SOCKET_PATH_BYTES = 90  # a path may have 107 on Linux and 103 elsewhere; /listener-xxxxxxxx and some to spare
SHORT_FOLDERS = ("/tmp", "/var/tmp", "/dev/shm")


def worker_context() -> BaseContext:
    """How decoding processes are started.

    Raises:
        MachineError: there is no folder whose path is short enough for their sockets.
    """
    _find_short_folder()
    name = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
    context = multiprocessing.get_context(name)
    context.set_forkserver_preload(PRELOADED)
    return context


def _find_short_folder() -> None:
    """See to it that sockets lie in a folder whose path is short: the system takes no longer one.

    multiprocessing makes a private folder below TMPDIR once, and removes it at the end. It is told another place only
    where that one is too long.
    """
    usual = tempfile.gettempdir()
    room = SOCKET_PATH_BYTES - len("/pymp-xxxxxxxx")
    if len(os.fsencode(usual)) <= room:
        return
    for folder in SHORT_FOLDERS:
        tempfile.tempdir = folder
        try:
            util.get_temp_dir()
        except OSError:
            continue
        finally:
            tempfile.tempdir = usual
        return
    why = f"{len(os.fsencode(usual))} bytes, and a socket's path has room for {room}"
    raise MachineError("the path of TMPDIR is too long", where=usual, why=why, remedy="set TMPDIR to a shorter one")


def allow_open_files(num_files: int) -> None:
    """See to it that this process may open so many files more: its limit is raised as far as the system lets it.

    Raises:
        MachineError: not so far. A server of workers that finds no descriptor free would end in the middle.
    """
    if sys.platform == "win32" or not os.path.isdir("/proc/self/fd"):
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = len(os.listdir("/proc/self/fd")) + num_files + SPARE_FILES
    if needed > soft != resource.RLIM_INFINITY and (hard == resource.RLIM_INFINITY or needed <= hard):
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
    elif needed > soft != resource.RLIM_INFINITY:
        raise MachineError(
            "too few files may be open",
            why=f"ulimit -n is {soft}, decoding processes need {needed}",
            remedy="raise it, as with ulimit -n 4096, or set --data.workers 0",
            is_local=True,
        )


def start_worker_server() -> None:
    """Start the server ahead of its first use; it imports what workers need, once."""
    if worker_context().get_start_method() != "forkserver":
        return
    from multiprocessing import forkserver, resource_tracker

    # Whoever ends the whole group, presses Ctrl-C or closes the terminal means the training process, which then ends
    # its workers. Blocked signals are inherited, by the server and by every worker that it forks: one that has only
    # begun is not hit either. The tracker ignores two of them by itself.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
    try:
        resource_tracker.ensure_running()  # else the server does; and it unblocks the signals that follow here
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextlib.contextmanager
def main_file_left_alone(pixels: object) -> Iterator[None]:
    """Processes that are started within do not run the program's own file again, as multiprocessing has it.

    They need nothing of it, and a plain script, without `if __name__ == "__main__"`, would start its own training in
    each of them. A source of pixels that is defined there is needed, and then the file is run.

    Args:
        pixels: what an index has for pictures that lie in no files.
    """
    main = sys.modules["__main__"]
    if type(pixels).__module__ == "__main__":
        yield
        return
    kept: dict[str, Any] = {name: vars(main)[name] for name in ("__spec__", "__file__") if name in vars(main)}
    main.__spec__ = None
    vars(main).pop("__file__", None)
    try:
        yield
    finally:
        vars(main).update(kept)


def end_with_training_process(worker_id: int) -> None:
    """In a worker: leave signals to the training process, and end when it says so or is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is None or parent.pid is None:
        return
    try:
        # The last one only finds out whether a thread can be had: a queue of multiprocessing needs one.
        for watch in (partial(_await_end, parent.sentinel), partial(_await_order, parent.pid), int):
            threading.Thread(target=watch, daemon=True).start()
    except RuntimeError:
        os._exit(1)  # an exception could not be handed over without a thread


def _await_end(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(0)


def _await_order(parent: int) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
