"""The answer as HTML. Whatever comes from outside, as the name of a class, is escaped."""

from __future__ import annotations

import base64
import io
from html import escape

from PIL import Image

from alexnet_dist.base.text import escape_text
from alexnet_dist.data.class_words import describe_class
from alexnet_dist.figures.overlay import draw_scale
from alexnet_dist.serving.pictures import Examination, FilterView, Picture
from alexnet_dist.serving.refusal import RefusedError

STYLE = """
.answer h2 { font-size: 1.1rem; margin: 0.5rem 0; }
.answer figure { margin: 0; }
.answer figcaption { font-size: 0.9rem; margin-top: 0.25rem; }
.answer img { display: block; width: 100%; height: auto; border-radius: 4px; }
.answer img.small { image-rendering: pixelated; }
.answer .pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(14rem, 1fr)); gap: 1rem; }
.answer .filters { display: grid; grid-template-columns: repeat(auto-fill, minmax(13rem, 1fr)); gap: 1rem; }
.answer .filters .pictures { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; }
.answer .scale { display: flex; gap: 0.5rem; align-items: center; font-size: 0.9rem; margin: 0.5rem 0 1rem; }
.answer .scale img { width: 8rem; height: 0.8rem; }
.refusal { border-left: 4px solid #d55e00; padding: 0.5rem 1rem; }
"""


def format_head(name: str, count: int) -> str:
    """What stands above all: which network this is.

    Args:
        name: of the model's folder.
        count: of its classes.
    """
    return f"<h1>AlexNet: {_escape(name)}</h1><p>Give a picture: the network names one of {count:,} classes.</p>"


def format_examination(found: Examination) -> str:
    """What speaks for the class of a picture, and what the filters of conv1 answer to."""
    name = _escape(describe_class(found.prediction.label or ""))
    seen = _format_figure(found.picture, "The picture as the network sees it", "The picture as the network sees it.")
    evidence = _format_figure(
        found.evidence, f"The same picture, bright where the evidence for {name} lies", f"The evidence for {name}."
    )
    filters = "".join(map(_format_filter, found.filters))
    return (
        f'<section class="answer"><h2>What speaks for {name}</h2><div class="pair">{seen}{evidence}</div>'
        f'<p class="scale"><span>none</span>{_format_image(draw_scale(), "From dark to bright")}'
        "<span>strongest in this picture</span></p>"
        f"<h2>What the first filters answer to</h2><p>The {len(found.filters)} filters of conv1 with the strongest "
        "answer, each beside the picture: bright where the filter answers.</p>"
        f'<div class="filters">{filters}</div></section>'
    )


def format_refusal(refusal: RefusedError) -> str:
    """Why a picture gets no answer."""
    return f'<p class="refusal" role="alert">This file gets no answer: {_escape(refusal.sentence)}.</p>'


def _format_filter(view: FilterView) -> str:
    number = view.number + 1
    pictures = _format_image(view.weights, f"Weights of filter {number}", "small") + _format_image(
        view.places, f"Where filter {number} answers"
    )
    caption = f"Filter {number}, answer {view.strength:.3g}"
    return f'<figure><div class="pictures">{pictures}</div><figcaption>{caption}</figcaption></figure>'


def _format_figure(picture: Picture, words: str, caption: str) -> str:
    """A figure; its words are escaped already."""
    return f"<figure>{_format_image(picture, words)}<figcaption>{caption}</figcaption></figure>"


def _format_image(picture: Picture, words: str, style: str = "") -> str:
    """A picture (H, W, 3) or (H, W, 1) as it stands in a page; its words are escaped already."""
    file = io.BytesIO()
    Image.fromarray(picture.squeeze(-1) if picture.shape[-1] == 1 else picture).save(file, "PNG")
    data = base64.b64encode(file.getvalue()).decode()
    return f'<img class="{style}" alt="{words}" src="data:image/png;base64,{data}">'


def _escape(text: str) -> str:
    return escape(escape_text(text))
