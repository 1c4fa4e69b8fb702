"""The API without a server: what is taken, what is refused, and what a full desk says."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest

from alexnet_dist.inference.predict import Prediction
from alexnet_dist.serving.desk import Desk
from alexnet_dist.serving.fence import API, Fence
from alexnet_dist.serving.pictures import Examiner
from alexnet_dist.serving.refusal import RefusedError

pytest.importorskip("python_multipart", reason="needs the extra demo")

import httpx
from starlette.applications import Starlette

from alexnet_dist.serving.api import make_api

MAX_BYTES = 100_000
ANSWER = {"class": "cat", "words": None, "confidence": 0.75}


class Reader:
    """In the place of a network: says how many bytes came, waits where it is told to, and refuses b"no"."""

    def __init__(self) -> None:
        self.may_end = threading.Event()
        self.may_end.set()
        self.seen: list[bytes] = []

    def classify(self, path: Path) -> Prediction:
        assert self.may_end.wait(10)
        self.seen.append(path.read_bytes())
        if self.seen[-1] == b"no":
            raise RefusedError(415, "not an image")
        return Prediction(str(path), "cat", 0.75, [("cat", 0.75)])


def ask(tmp_path: Path, reader: Reader, *requests: dict[str, Any], places: int = 4, seconds: float = 5) -> list[Any]:
    """The answers to requests that come at once."""
    desk = Desk(places)
    api = make_api(cast(Examiner, reader), desk, tmp_path, MAX_BYTES, seconds)
    inner = Starlette()
    inner.add_route(API, api, methods=["POST"])

    async def ask_all() -> list[Any]:
        transport = httpx.ASGITransport(Fence(inner, tmp_path, MAX_BYTES))
        async with httpx.AsyncClient(transport=transport, base_url="http://here") as client:
            asked = [asyncio.create_task(client.post(API, **request)) for request in requests]
            while not reader.may_end.is_set() and sum(task.done() for task in asked) < len(asked) - places:
                await asyncio.sleep(0.01)
            reader.may_end.set()
            return await asyncio.gather(*asked)

    answers = asyncio.run(ask_all())
    desk.close()
    assert list(tmp_path.iterdir()) == []  # no picture stays
    return answers


@pytest.mark.parametrize(
    "request_",
    [
        {"content": b"\xff" * 90_000},
        {"content": b"\xff" * 90_000, "headers": {"content-type": "application/x-www-form-urlencoded"}},
        {"files": {"file": ("a.jpg", b"\xff" * 90_000, "image/jpeg")}},
        {"files": {"anything": ("x", b"\xff" * 90_000)}, "data": {"a": "b"}},
    ],
    ids=("body", "curl", "form", "more"),
)
def test_a_picture_comes_as_the_body_or_in_a_form(tmp_path: Path, request_: dict[str, Any]) -> None:
    reader = Reader()
    (answer,) = ask(tmp_path, reader, request_)
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/json"
    assert answer.json() == {**ANSWER, "topk": [ANSWER]}
    assert reader.seen == [b"\xff" * 90_000]


async def stall() -> AsyncIterator[bytes]:
    """A picture that never comes whole."""
    yield b"\xff"
    await asyncio.sleep(60)


@pytest.mark.parametrize(
    ("request_", "status", "sentence"),
    [
        ({"content": b"no"}, 415, "not an image"),
        ({"content": b""}, 400, "the request is empty: send a picture as the body, or as the file of a form"),
        ({"content": b"x" * (MAX_BYTES + 1)}, 413, "the file is too large: 0 MB are allowed"),
        ({"content": b"x" * (10 * MAX_BYTES)}, 413, "the file is too large: 0 MB are allowed"),
        ({"files": {"file": b"x" * (MAX_BYTES + 1)}}, 413, "the file is too large: 0 MB are allowed"),
        ({"files": {"file": ("a", b"")}}, 200, ""),
        ({"files": {"a": b"x", "b": b"y"}}, 400, "the form cannot be read: Too many files"),
        ({"content": b"x", "headers": {"content-type": "multipart/form-data"}}, 400, "the form cannot be read"),
    ],
    ids=("refused", "empty", "large", "very large", "large form", "empty file", "two files", "no boundary"),
)
def test_what_cannot_be_used_has_a_sentence(
    tmp_path: Path, request_: dict[str, Any], status: int, sentence: str
) -> None:
    (answer,) = ask(tmp_path, Reader(), request_)
    assert answer.status_code == status
    assert answer.json().get("error", "").startswith(sentence)


def test_a_form_without_a_file_is_refused(tmp_path: Path) -> None:
    form = b'--x\r\nContent-Disposition: form-data; name="a"\r\n\r\nb\r\n--x--\r\n'
    headers = {"content-type": "multipart/form-data; boundary=x"}
    (answer,) = ask(tmp_path, Reader(), {"content": form, "headers": headers})
    assert (answer.status_code, answer.json()["error"][:22]) == (400, "the form has no file: ")


def test_a_picture_that_does_not_arrive_gives_its_place_back(tmp_path: Path) -> None:
    (answer,) = ask(tmp_path, Reader(), {"content": stall()}, seconds=0.05)
    assert (answer.status_code, answer.json()) == (408, {"error": "the picture did not arrive within 0.05 s"})


def test_who_finds_no_place_is_told_so(tmp_path: Path) -> None:
    reader = Reader()
    reader.may_end.clear()
    answers = ask(tmp_path, reader, *({"content": b"%d" % number} for number in range(9)), places=4)
    codes = [answer.status_code for answer in answers]
    assert sorted(codes) == [200] * 4 + [503] * 5
    full = answers[codes.index(503)]
    assert full.json() == {"error": "4 requests are waiting already; try again in a moment"}
    assert full.headers["retry-after"] == "1"
