"""What is let through to Gradio and to the API, and how much of it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from alexnet_dist.serving.fence import HEADERS, Fence, Message, Receive, Send, leads_inside

FOLDER = Path("/tmp/visitors")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/", True),
        ("/api/predict", True),
        ("/assets/index.js", True),
        ("/gradio_api/queue/join", True),
        ("/gradio_api/heartbeat/abc", True),
        ("/gradio_api/file=/tmp/visitors/1/a.png", True),
        ("/gradio_api/file=/tmp/visitors/../../etc/passwd", False),
        ("/gradio_api/file=/tmp/visitors2/a.png", False),
        ("/gradio_api/file=/etc/passwd", False),
        ("/gradio_api/file=http://example.com/", False),
        ("/gradio_api/file=tmp/visitors/1/a.png", False),
        ("/gradio_api/proxy=https://example.com/", False),
        ("/gradio_api/run/answer", False),
        ("/gradio_api/stream/a/b/1/playlist.m3u8", False),
        ("/gradio_api/info", False),
        ("/monitoring", False),
        ("/api/predict/", False),
        ("", False),
    ],
)
def test_only_what_page_and_api_need(path: str, expected: bool) -> None:
    assert leads_inside(path, FOLDER) is expected


def send_request(path: str, parts: list[bytes], length: int | None = None) -> tuple[int, dict[bytes, bytes], Any, int]:
    """Status, headers and JSON of the answer, and how many bytes of the request were read."""
    sent: list[Message] = []
    left, read = list(parts), 0

    async def receive() -> Message:
        nonlocal read
        part = left.pop(0)
        read += len(part)
        return {"type": "http.request", "body": part, "more_body": bool(left)}

    async def send(message: Message) -> None:
        sent.append(message)

    async def echo(scope: Message, receive: Receive, send: Send) -> None:
        """Count what comes; it fails where the visitor goes, as an application of Starlette."""
        count, is_more = 0, True
        while is_more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise RuntimeError("gone")
            count, is_more = count + len(message["body"]), message["more_body"]
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": json.dumps({"count": count}).encode()})

    headers = [] if length is None else [(b"content-length", str(length).encode())]
    fence = Fence(echo, FOLDER, max_bytes=1_000_000)
    asyncio.run(fence({"type": "http", "path": path, "headers": headers}, receive, send))
    start, body = sent
    return start["status"], dict(start["headers"]), json.loads(body["body"]), read


def test_what_is_small_comes_through() -> None:
    status, headers, body, _ = send_request("/api/predict", [b"x" * 400_000] * 2, 800_000)
    assert (status, body) == (200, {"count": 800_000})
    assert headers == {b"a": b"b", **dict(HEADERS)}


@pytest.mark.parametrize("length", [None, 5_000_000])
def test_what_is_too_large_is_not_read_to_its_end(length: int | None) -> None:
    status, headers, body, read = send_request("/gradio_api/upload", [b"x" * 400_000] * 100, length)
    assert (status, body) == (413, {"error": "the file is too large: 1 MB are allowed"})
    assert headers[b"connection"] == b"close"
    assert read == (0 if length else 1_200_000)


def test_another_address_is_refused_before_the_application_hears_of_it() -> None:
    status, headers, body, read = send_request("/gradio_api/file=/etc/passwd", [b"x"])
    assert (status, body, read) == (404, {"error": "there is no such page"}, 0)
    assert dict(HEADERS).items() <= headers.items()


def test_faults_that_are_not_refusals_are_heard_of() -> None:
    async def fail(scope: Message, receive: Receive, send: Send) -> None:
        raise RuntimeError("a fault")

    async def nothing(message: Message | None = None) -> Message:
        return {}

    with pytest.raises(RuntimeError, match="a fault"):
        asyncio.run(Fence(fail, FOLDER)({"type": "http", "path": "/", "headers": []}, nothing, nothing))
