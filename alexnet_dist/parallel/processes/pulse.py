"""Signs of life: each process counts in the job's store, so that those that remain can name the one that is gone.

torch says which connection broke, not whose it was; and of a machine whose cable is pulled it says nothing for half an
hour. Where there is no store over TCP (one process, tests) nothing is started.
"""

from __future__ import annotations

import contextlib
import os
import platform
import threading
import time
from collections.abc import Iterable
from datetime import timedelta

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from alexnet_dist.base.ending import leave, print_last
from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.ranks import is_first_here, rank_from_environment

LOOK_SECONDS = 0.05  # between looks whether others have joined or know: a short run may lose one soon after
BEAT_SECONDS = 0.5
LISTEN_SECONDS = 2.0  # of four beats, one must have been heard
TICK_SECONDS = 1.0
SILENT_TICKS = 25  # counted by a thread: a process that is suspended as a whole does not count
DONE = "done"
VERDICT = "pulse/verdict"
INFORMED = "pulse/informed"  # how many know the verdict
SAID = "pulse/said"  # the rank that says why the job ends
SPEAK_SECONDS = 5.0
SAY_SECONDS = 0.5  # for a process that closed its connections to say so


class Pulse:
    """This process's sign of life, and its ear for the others'.

    One thread counts up in the store and reads its neighbor's count. It may hang in the network, so a second one,
    which only looks at two numbers, ends the process when either has stood still for `SILENT_TICKS`.
    """

    def __init__(self) -> None:
        self._stop = threading.Event()
        self._rank = self._world_size = self._neighbor = self._beats = 0
        self._has_joined = False
        self._heard = ""
        self._kept: Store | None = None
        self._store: Store | None = None  # of the main thread; the one that beats has its own

    def start(self) -> None:
        """Begin as soon as the processes have joined."""
        for action in (self._beat, self._watch):
            threading.Thread(target=action, name="pulse", daemon=True).start()

    def stop(self, is_done: bool) -> None:
        """End; say so to the others if this process has done its work."""
        self._stop.set()
        if is_done and self._store is not None:
            with contextlib.suppress(dist.DistError, RuntimeError):  # the others have ended, and the store with them
                self._store.set(_key(self._rank), DONE)

    def name_lost(self) -> tuple[str, bool]:
        """Who is gone, in words, and whether it is this process that should say so. Takes some seconds."""
        store = self._store
        if store is None:  # it went before the first sign of life
            if rank_from_environment() > 0:
                time.sleep(SPEAK_SECONDS)  # rank 0 says it, if it lives, and the launcher then ends this process
            return "another process", is_first_here(without=0)
        try:
            if not store.check([VERDICT]):
                store.compare_set(VERDICT, "", _judge(store, self._rank, self._world_size))
            lost, survivors, speaker = store.get(VERDICT).decode().split("|")
            _stay_until_known(store, int(survivors))
        except (dist.DistError, RuntimeError):  # whoever keeps the store is gone
            return _store_keeper(), is_first_here(without=0)
        return lost or "another process", int(speaker) == self._rank

    def claim_speech(self, otherwise: bool) -> bool:
        """Whether it is this process that says what ended it: the first that asks. The others then say nothing.

        Args:
            otherwise: the answer where the processes cannot ask one another.
        """
        if self._store is None:
            return otherwise
        with contextlib.suppress(dist.DistError, RuntimeError):
            self._store.compare_set(SAID, "", str(self._rank))
            return self._store.get(SAID).decode() == str(self._rank)
        return otherwise

    def is_said(self) -> bool:
        """Whether another process says why it ended the job."""
        until = time.monotonic() + SAY_SECONDS
        with contextlib.suppress(dist.DistError, RuntimeError):
            while self._store is not None and time.monotonic() < until:
                if self._store.check([SAID]):
                    return self._store.get(SAID).decode() != str(self._rank)
                time.sleep(LOOK_SECONDS)
        return False

    def _beat(self) -> None:
        while not dist.is_initialized():
            if self._stop.wait(LOOK_SECONDS):
                return
        if dist.get_world_size() == 1 or not _is_over_tcp():
            return
        self._rank, self._world_size = dist.get_rank(), dist.get_world_size()
        self._neighbor = (self._rank + 1) % self._world_size
        self._has_joined = True  # from here on silence counts: the network may be gone before the first beat is heard
        try:
            self._kept = _default_store()  # where rank 0 keeps it, it serves the others until this process has spoken
            store, self._store = _clone_store(), _clone_store()
            store.set(f"{_key(self._rank)}/host", platform.node())
            while not self._stop.wait(BEAT_SECONDS):
                store.set(_key(self._rank), str(self._beats))
                self._heard = _read(store, [self._neighbor])[0]
                self._beats += 1
        except (dist.DistError, RuntimeError):
            return  # the count stands still, and the other thread sees it

    def _watch(self) -> None:
        before, ticks = (0, ""), 0
        while not self._stop.wait(TICK_SECONDS):
            now = (self._beats, self._heard)
            is_silent = now[0] == before[0] or (now[1] == before[1] and now[1] != DONE)
            ticks = ticks + 1 if is_silent and self._has_joined else 0
            before = now
            if ticks >= SILENT_TICKS:
                self._end(f"rank {self._neighbor}" if self._is_beating(now[0]) else None)

    def _is_beating(self, beats: int) -> bool:
        time.sleep(2 * BEAT_SECONDS)
        return self._beats > beats

    def _end(self, lost: str | None) -> None:
        error = lost_contact(lost or _store_keeper(), f"no sign of life for {SILENT_TICKS} s")
        # Of a lost neighbor this process alone knows.
        if lost or is_first_here(without=0):
            print_last(f"error: {error}")
        leave(error.exit_code)  # the main thread waits in the network and cannot be woken


def lost_contact(who: str, why: str) -> MachineError:
    """The error of a job that lost a process."""
    return MachineError(f"lost contact with {who}", why=why, remedy="see its message; then start again")


def _stay_until_known(store: Store, survivors: int) -> None:
    """Wait until all who remain know the verdict: the store may end with this process."""
    until = time.monotonic() + 2 * LISTEN_SECONDS
    with contextlib.suppress(dist.DistError, RuntimeError):  # its keeper saw the last one and has ended
        informed = store.add(INFORMED, 1)
        while informed < survivors and time.monotonic() < until:
            time.sleep(LOOK_SECONDS)
            informed = store.add(INFORMED, 0)


def _judge(store: Store, rank: int, world_size: int) -> str:
    """Who does not count any more, how many do, and the first of them: "rank 1 on b, rank 3 on d|2|0"."""
    others = [other for other in range(world_size) if other != rank]
    before = _read(store, others)
    time.sleep(LISTEN_SECONDS)
    after = _read(store, others)
    lost = [other for other, a, b in zip(others, before, after, strict=True) if a == b != DONE]
    words = ", ".join(f"rank {other}{_host(store, other)}" for other in lost)
    survivors = set(range(world_size)) - set(lost)
    return f"{words}|{len(survivors)}|{min(survivors)}"


def _host(store: Store, rank: int) -> str:
    key = f"{_key(rank)}/host"
    return f" on {store.get(key).decode()}" if store.check([key]) else ""


def _read(store: Store, ranks: Iterable[int]) -> list[str]:
    return [store.get(_key(rank)).decode() if store.check([_key(rank)]) else "" for rank in ranks]


def _key(rank: int) -> str:
    return f"pulse/{rank}"


def _store_keeper() -> str:
    return f"the machine of rank 0, {os.environ.get('MASTER_ADDR', '')}"


def _is_over_tcp() -> bool:
    store = _default_store()
    while isinstance(store, PrefixStore):
        store = store.underlying_store
    return isinstance(store, TCPStore)


def _clone_store() -> Store:
    """A connection of its own: on the job's, a wait for one key would hold up everything."""
    store: Store = _default_store().clone()
    store.set_timeout(timedelta(seconds=LISTEN_SECONDS))
    return store


def _default_store() -> Store:
    store: Store = dist.distributed_c10d._get_default_store()
    return store
