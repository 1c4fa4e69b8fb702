"""Processes and launchers that do not find each other: torch's words, turned into one line."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

import torch.distributed as dist
from torch.distributed.elastic.rendezvous import RendezvousClosedError

from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.ranks import rank_from_environment, world_size_from_environment
from alexnet_dist.parallel.processes.network import advise_interface, port_in_use, resolve_host, settle_interface
from alexnet_dist.parallel.processes.waiting import REMEDY

SIGNS = ("gloo", "Gloo", "connect", "socket", "NCCL")


@contextmanager
def meeting_named() -> Iterator[None]:
    """Within, processes join. Their host must have an address, and what keeps them apart is one line.

    Raises:
        MachineError: they cannot meet.
    """
    host, port = os.environ.get("MASTER_ADDR", ""), os.environ.get("MASTER_PORT", "")
    is_alone = world_size_from_environment() == 1 or dist.is_initialized()
    if not is_alone:
        resolve_host(host, "MASTER_ADDR")
        settle_interface()
    try:
        yield
    except (dist.DistError, RuntimeError) as error:
        if is_alone or not (isinstance(error, dist.DistError) or any(sign in str(error) for sign in SIGNS)):
            raise
        raise explain_meeting(error, f"{host} port {port}", advise_interface() or REMEDY) from error


def explain_meeting(error: Exception, where: str, remedy: str = REMEDY) -> MachineError:
    """One line for processes, or launchers, that did not meet.

    Args:
        error: torch's or Accelerate's.
        where: they were to meet.
        remedy: what to do about it.
    """
    if isinstance(error, RendezvousClosedError):
        return MachineError("the job was ended by another machine", remedy="see its message; then start again")
    text = " ".join(str(error).split())
    if "EADDRINUSE" in text or "in use" in text:
        return port_in_use(where, text)
    # The first process speaks for all; another one that cannot reach it speaks for itself.
    is_local = rank_from_environment() > 0 and world_size_from_environment() > 1
    why = _find_reason(text)
    return MachineError("the processes could not meet", where=where, why=why, remedy=remedy, is_local=is_local)


def _find_reason(text: str) -> str:
    """Of torch's many words those that say why."""
    if found := re.search(r"errno: \d+ - ([^)]+)", text):
        return found[1]
    if found := re.search(r"Timed out after (\d+) seconds waiting for clients\. (\d+)/(\d+)", text):
        return f"{found[2]} of {found[3]} came within {found[1]} s"
    if found := re.search(r"(wait timeout|client socket has timed out) after (\d+)ms", text):
        return f"no answer within {int(found[2]) / 1000:g} s"
    return text
