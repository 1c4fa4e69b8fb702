"""A fence around the application: which addresses there are, how much a request may bring, what a page may load.

Gradio answers at many more addresses than its page needs. Some read any file of this machine, or fetch any address for
whoever asks. None of these is let through.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any, TypeAlias

from alexnet_dist.base.durable import format_json
from alexnet_dist.serving.refusal import NOT_FOUND, TOO_LARGE, RefusedError

Message: TypeAlias = MutableMapping[str, Any]  # of ASGI
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
Application: TypeAlias = Callable[[Message, Receive, Send], Awaitable[None]]

API = "/api/predict"
MAX_BYTES = 20_000_000  # of a picture's file
_FORM_BYTES = 10_000  # what a form has around its file
_FILE = "/gradio_api/file="
_PAGES = frozenset(
    {
        *("/", "/config", "/theme.css", "/favicon.ico", "/manifest.json", "/robots.txt", API),
        *("/gradio_api/startup-events", "/gradio_api/queue/join", "/gradio_api/queue/data"),
        *("/gradio_api/upload", "/gradio_api/upload_progress", "/gradio_api/cancel", "/gradio_api/reset"),
    }
)
_FOLDERS = ("/assets/", "/static/", "/gradio_api/heartbeat/")
_POLICY = (  # Gradio compiles its templates in the page, and has its styles there
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval'; "
    "style-src 'self' 'unsafe-inline'; frame-ancestors 'self'; base-uri 'self'; form-action 'self'"
)
HEADERS = (
    (b"content-security-policy", _POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
)


class Fence:
    """An ASGI application that lets through what the page and the API need.

    Args:
        application: what lies behind.
        folder: where the pictures lie that visitors have sent; no other file is shown.
        max_bytes: of a picture's file.
    """

    def __init__(self, application: Application, folder: Path, max_bytes: int = MAX_BYTES) -> None:
        self._application, self._folder, self._max_bytes = application, folder, max_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request, or let it through."""
        if scope["type"] == "lifespan":
            await self._application(scope, receive, send)
        elif scope["type"] == "http":  # the server ends all others
            await self._pass(scope, receive, _Answer(send))

    async def _pass(self, scope: Message, receive: Receive, answer: _Answer) -> None:
        limit = RefusedError(TOO_LARGE, describe_limit(self._max_bytes))
        if not leads_inside(scope["path"], self._folder):
            return await answer.refuse(RefusedError(NOT_FOUND, "there is no such page"))
        if _find_length(scope) > self._max_bytes + _FORM_BYTES:
            return await answer.refuse(limit)
        received = 0

        async def receive_limited() -> Message:
            nonlocal received
            message = await receive()
            received += len(message.get("body", b""))
            if received <= self._max_bytes + _FORM_BYTES:
                return message
            await answer.refuse(limit)
            return {"type": "http.disconnect"}  # nobody listens to what else is said

        try:
            return await self._application(scope, receive_limited, answer)
        except Exception:
            if not answer.is_refused:
                raise
            return None


def leads_inside(path: str, folder: Path) -> bool:
    """Whether the page or the API need what lies at a path of the server."""
    if path.startswith(_FILE):
        return Path(os.path.normpath(path.removeprefix(_FILE))).is_relative_to(folder)
    return path in _PAGES or path.startswith(_FOLDERS)


def describe_limit(max_bytes: int) -> str:
    """What is said of a file that is too large."""
    return f"the file is too large: {max_bytes / 1e6:,.0f} MB are allowed"


class _Answer:
    """What goes back, with the headers that every answer has; what comes after a refusal does not.

    Args:
        send: takes it.
    """

    def __init__(self, send: Send) -> None:
        self._send, self.is_refused, self._has_begun = send, False, False

    async def __call__(self, message: Message) -> None:
        if not self.is_refused:
            await self._pass(message)

    async def refuse(self, refusal: RefusedError) -> None:
        """Send a refusal in the place of an answer."""
        has_begun, self.is_refused = self._has_begun, True
        if not has_begun:
            headers = [(b"content-type", b"application/json"), (b"connection", b"close")]
            await self._pass({"type": "http.response.start", "status": refusal.status, "headers": headers})
            await self._pass({"type": "http.response.body", "body": format_refusal(refusal)})

    async def _pass(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._has_begun = True
            message = {**message, "headers": [*message.get("headers", ()), *HEADERS]}
        await self._send(message)


def format_refusal(refusal: RefusedError) -> bytes:
    """A refusal as JSON: error, in a sentence."""
    return format_json({"error": refusal.sentence}, "the answer").encode()


def _find_length(scope: Message) -> int:
    """Bytes of a request's body, as its header says; 0 where it does not."""
    value = dict(scope["headers"]).get(b"content-length", b"")
    return int(value) if value.isdigit() else 0
