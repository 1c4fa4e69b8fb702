"""The page, made by Gradio, and the application that has it and the API."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any

from alexnet_dist.base.extras import import_extra
from alexnet_dist.data.class_words import describe_class
from alexnet_dist.serving.desk import PLACES, Desk
from alexnet_dist.serving.fence import API, MAX_BYTES, Application, Fence
from alexnet_dist.serving.markup import STYLE, format_examination, format_head, format_refusal
from alexnet_dist.serving.pictures import TOPK, Examiner
from alexnet_dist.serving.refusal import NO_FILE, RefusedError

EXTRA = "demo"
SWEEP_SECONDS, KEEP_SECONDS = 60, 600  # how often what visitors sent is looked at, and how long it stays


def import_gradio(folder: Path) -> Any:
    """Gradio, which reads as it is imported where to put what visitors send, and whether to tell its makers of us.

    Args:
        folder: where pictures lie that visitors send.

    Raises:
        MachineError: it is not installed, or cannot be imported.
    """
    os.environ |= {"GRADIO_TEMP_DIR": str(folder), "GRADIO_ANALYTICS_ENABLED": "False", "GRADIO_SSR_MODE": "False"}
    return import_extra("gradio", EXTRA)


def build_application(gradio: Any, examiner: Examiner, desk: Desk, name: str, folder: Path) -> Application:
    """The page and the API, behind a fence.

    Args:
        gradio: the package.
        examiner: answers.
        desk: where requests wait.
        name: of the model's folder.
        folder: where pictures lie that visitors send.
    """
    from fastapi import FastAPI

    from alexnet_dist.serving.api import make_api

    outer = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    outer.add_route(API, make_api(examiner, desk, folder), methods=["POST"])
    page = _build_page(gradio, examiner, desk, name, folder)
    page.queue(max_size=PLACES)
    gradio.mount_gradio_app(
        *(outer, page, "/"),
        max_file_size=MAX_BYTES,
        footer_links=[],
        run_history=False,
        ssr_mode=False,
        css=STYLE,
        theme=_choose_theme(gradio),
    )
    return Fence(outer, folder)


def _build_page(gradio: Any, examiner: Examiner, desk: Desk, name: str, folder: Path) -> Any:
    async def answer(upload: dict[str, Any] | None) -> tuple[dict[str, float] | None, str]:
        """The bars and what stands below them."""
        if upload is None:
            return None, ""
        try:
            path = find_upload(folder, str(upload["path"]))
            with desk.place():
                found = await desk.run(partial(examiner.examine, path))
        except RefusedError as refusal:
            return None, format_refusal(refusal)
        return {describe_class(label): value for label, value in found.prediction.top}, format_examination(found)

    with gradio.Blocks(
        title=f"AlexNet: {name}", analytics_enabled=False, delete_cache=(SWEEP_SECONDS, KEEP_SECONDS)
    ) as page:
        gradio.HTML(format_head(name, len(examiner.card.classes)))
        with gradio.Row():
            picture = gradio.Image(
                label="Picture", sources=["upload", "clipboard"], type="filepath", buttons=[], height=320
            )
            bars = gradio.Label(label="Likely classes", num_top_classes=TOPK)
        below = gradio.HTML()
        picture.async_move_resource_to_block_cache = partial(_keep_upload, gradio, folder)
        # Gradio would open the picture itself, without our limits and words.
        picture.change(answer, picture, [bars, below], preprocess=False, api_visibility="private")
    return page


async def _keep_upload(gradio: Any, folder: Path, path: str) -> str:
    """In the place of what Gradio does: copy any file of this machine, or fetch any address, that a visitor names."""
    try:
        return str(find_upload(folder, path))
    except RefusedError as refusal:
        raise gradio.Error(refusal.sentence, print_exception=False) from refusal


def find_upload(folder: Path, path: str) -> Path:
    """A file that a visitor has sent.

    Args:
        folder: where these lie.
        path: as the page names it.

    Raises:
        RefusedError: it lies elsewhere, or is gone.
    """
    place = Path(os.path.realpath(path))
    if not place.is_relative_to(folder) or not place.is_file():
        raise RefusedError(NO_FILE, "the picture is not here any more; send it again")
    return place


def _choose_theme(gradio: Any) -> Any:
    """Gradio's own colors, with the fonts that a machine has: nothing is asked of another host."""
    sans, mono = ["system-ui", "sans-serif"], ["ui-monospace", "monospace"]
    return gradio.themes.Default(font=sans, font_mono=mono)
