"""Signs of life where the network is gone before the first one was heard; tests/dist/test_peers.py has the others."""

from __future__ import annotations

import threading
from typing import Any

import pytest

from alexnet_dist.parallel.processes import pulse
from alexnet_dist.parallel.processes.pulse import Pulse


class SilentStore:
    """A store on a machine that does not answer any more."""

    def __init__(self) -> None:
        self.end = threading.Event()

    def set(self, *_: Any) -> None:
        self.end.wait(20)


@pytest.mark.parametrize("joined", [True, False])
def test_a_store_that_never_answers_ends_a_process_that_has_joined(
    monkeypatch: pytest.MonkeyPatch, joined: bool
) -> None:
    store, ended = SilentStore(), threading.Event()
    monkeypatch.setattr(pulse.dist, "is_initialized", lambda: joined)
    monkeypatch.setattr(pulse.dist, "get_rank", lambda: 1)
    monkeypatch.setattr(pulse.dist, "get_world_size", lambda: 2)
    for name, value in (("_default_store", store), ("_clone_store", store), ("_is_over_tcp", True)):
        monkeypatch.setattr(pulse, name, lambda value=value: value)
    monkeypatch.setattr(pulse, "SILENT_TICKS", 1)
    monkeypatch.setattr(pulse, "TICK_SECONDS", 0.05)
    said: list[str | None] = []

    def end(self: Pulse, lost: str | None) -> None:
        said.append(lost)
        ended.set()
        self.stop(is_done=False)

    monkeypatch.setattr(Pulse, "_end", end)
    monkeypatch.setattr(pulse, "BEAT_SECONDS", 0.02)
    watched = Pulse()
    watched.start()
    ended.wait(5 if joined else 0.3)
    watched.stop(is_done=False)
    store.end.set()
    assert said == ([None] if joined else [])  # whoever keeps the store is gone
