"""The HTTP API: POST a picture, get JSON."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path

from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from alexnet_dist.base.durable import format_json
from alexnet_dist.inference.predict import describe_prediction
from alexnet_dist.serving.desk import Desk
from alexnet_dist.serving.fence import MAX_BYTES, describe_limit, format_refusal
from alexnet_dist.serving.pictures import Examiner
from alexnet_dist.serving.refusal import BUSY, NO_FILE, TOO_LARGE, TOO_SLOW, RefusedError

READ_SECONDS = 30.0  # for a picture to arrive
_HOW = "send a picture as the body, or as the file of a form"


def make_api(
    examiner: Examiner, desk: Desk, folder: Path, max_bytes: int = MAX_BYTES, read_seconds: float = READ_SECONDS
) -> Callable[[Request], Awaitable[Response]]:
    """What answers a POST with the classes of the picture in it.

    Args:
        examiner: knows them.
        desk: where requests wait.
        folder: where pictures lie until they are answered.
        max_bytes: of a picture's file.
        read_seconds: for a picture to arrive.
    """

    async def predict(request: Request) -> Response:
        try:
            with desk.place(), tempfile.TemporaryDirectory(dir=folder) as place:
                path = Path(place) / "picture"
                try:
                    async with asyncio.timeout(read_seconds):
                        await _receive(request, path)
                except TimeoutError as error:
                    raise RefusedError(TOO_SLOW, f"the picture did not arrive within {read_seconds:g} s") from error
                if path.stat().st_size > max_bytes:
                    raise RefusedError(TOO_LARGE, describe_limit(max_bytes))
                prediction = await desk.run(partial(examiner.classify, path))
        except RefusedError as refusal:
            headers = {"retry-after": "1"} if refusal.status == BUSY else None
            return Response(format_refusal(refusal), refusal.status, headers, "application/json")
        except ClientDisconnect:
            return Response(status_code=NO_FILE)  # which nobody reads
        return Response(format_json(describe_prediction(prediction), "the answer"), media_type="application/json")

    return predict


async def _receive(request: Request, path: Path) -> None:
    """Write the picture of a request to a file: its body, or the file of the form that it is.

    Raises:
        RefusedError: there is none.
    """
    if not request.headers.get("content-type", "").startswith("multipart/form-data"):
        with path.open("wb") as file:
            async for part in request.stream():
                file.write(part)
        if path.stat().st_size == 0:
            raise RefusedError(NO_FILE, f"the request is empty: {_HOW}")
        return
    try:
        async with request.form(max_files=1, max_fields=10) as form:
            upload = next((value for value in form.values() if isinstance(value, UploadFile)), None)
            if upload is None:
                raise RefusedError(NO_FILE, f"the form has no file: {_HOW}")
            with path.open("wb") as file:
                shutil.copyfileobj(upload.file, file)
    except HTTPException as error:
        raise RefusedError(NO_FILE, f"the form cannot be read: {error.detail}") from error
