"""One request is worked on at a time, and only so many wait."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import time

import pytest

from alexnet_dist.serving.desk import Desk
from alexnet_dist.serving.refusal import BUSY, RefusedError


def test_one_at_a_time_in_the_order_of_their_coming() -> None:
    desk, at_work, seen = Desk(), threading.Lock(), []

    def work(number: int) -> int:
        assert at_work.acquire(blocking=False), "two at once"
        time.sleep(0.002)
        at_work.release()
        seen.append(number)
        return -number

    async def ask(number: int) -> int:
        with desk.place():
            return await desk.run(lambda: work(number))

    async def ask_all() -> list[int]:
        return await asyncio.gather(*map(ask, range(20)))

    assert asyncio.run(ask_all()) == [-number for number in range(20)]
    assert seen == list(range(20))
    desk.close()


def test_places_are_limited_and_given_back() -> None:
    desk = Desk(places=2)
    for _ in range(3):
        with desk.place(), contextlib.suppress(ZeroDivisionError), desk.place():
            with pytest.raises(RefusedError, match="2 requests are waiting already") as refused, desk.place():
                pass
            assert refused.value.status == BUSY
            1 / 0  # noqa: B018 (a place is given back after an error, too)
    desk.close()
