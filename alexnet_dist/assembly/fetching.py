"""What data.root is the address of, brought to every machine of a run before any of them looks for images."""

from __future__ import annotations

import threading

from alexnet_dist.assembly.sets import fetch_root
from alexnet_dist.base.addresses import is_address
from alexnet_dist.base.errors import AlexNetDistError
from alexnet_dist.parallel.runtime import Runtime
from alexnet_dist.settings.schema import DataConfig

TURN_SECONDS = 1.0


def fetch_together(runtime: Runtime, data: DataConfig) -> None:
    """Fetch on all machines at once; all processes come back when all is there. Of a machine one process fetches.

    Raises:
        AlexNetDistError: what any process has met, in all of them.
    """
    if not is_address(data.root):
        return
    if runtime.world_size == 1:
        fetch_root(data)
        return
    met: list[BaseException] = []
    thread = threading.Thread(target=_fetch, args=(data, met), name="fetch root", daemon=True)
    thread.start()
    # In turns, because a process that waits for a collective longer than half an hour gives up.
    while sum(runtime.agree(int(thread.is_alive()))):
        thread.join(TURN_SECONDS)
    error = met[0] if met else None
    runtime.raise_together(error if isinstance(error, AlexNetDistError) else None)  # which all of them wait for
    if error is not None:
        raise error


def _fetch(data: DataConfig, met: list[BaseException]) -> None:
    try:
        fetch_root(data)
    except BaseException as error:  # noqa: BLE001 (raised by the thread that waits)
        met.append(error)
