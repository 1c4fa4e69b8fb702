"""README.md of a model folder: the model card that the Hugging Face hub shows, with what is known and nothing else.

The same run gives the same page, whatever machines it was on and however often it was stopped: no date, speed or place
stands on it. The figures are those of the weights whose sha256 the page names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import NormalDist
from typing import Any

import huggingface_hub  # which imports what is asked of it: nothing, at the start of a training
import yaml

from alexnet_dist.base.durable import read_digest
from alexnet_dist.base.nested import nest
from alexnet_dist.base.sources import SOURCES
from alexnet_dist.base.text import escape_text
from alexnet_dist.inference.model_folder import WEIGHTS, ModelCard, keep_public
from alexnet_dist.models import build_on_meta

README = "README.md"
# Without this line a page is its user's. It is never replaced then.
MARK = "<!-- alexnet_dist writes this page anew. Remove this line to keep the page as it is. -->"
MOST_CLASSES = 50  # that are named
SET_NAMES = {"train": "training", "val": "validation", "test": "test"}
# What the hub calls the images of a source: type and name of a data set. Those of a user's have no name there.
HUB_NAMES = {
    "imagenet": ("imagenet-1k", "ImageNet 2012"),
    "cifar10": ("cifar10", "CIFAR-10"),
    "fashion_mnist": ("fashion_mnist", "Fashion-MNIST"),
    "digits": ("digits", "scikit-learn's digits"),
    "synthetic": ("synthetic", "made-up images"),
}
OWN_IMAGES = "imagefolder"
LICENSE = (
    "## License\n\nNo license is stated for these weights. The pictures, and weights that training began with, may "
    "have licenses that bind them. Whoever publishes this page names one as `license:` in its first lines."
)
# Settings that say how, and that a repetition on other machines does not need.
_OF_MACHINES = ("train.micro_batch_size", "parallel.", "channels_last")


@dataclass(frozen=True)
class SetResult:
    """What was measured on a set with the weights.

    Args:
        split: val or test.
        top1, top5: fractions.
        loss: mean cross-entropy.
        num_examples: images that were counted.
    """

    split: str
    top1: float
    top5: float
    loss: float
    num_examples: int


def format_page(
    card: ModelCard,
    digest: str,
    results: Sequence[SetResult] = (),
    counts: Mapping[str, int] | None = None,
    is_held_out: bool = False,
) -> str:
    """The page of a model.

    Args:
        card: what config.json says.
        digest: sha256 of model.safetensors.
        results: of the sets that the weights were measured on; without any, the page has no section on results.
        counts: images of each set of the run; None = not known.
        is_held_out: whether the validation set is a part of the training set.
    """
    card = replace(card, source=keep_public(card.source))  # older versions told more
    data = _describe_to_hub(card, results)
    parts = [
        _introduce(card),
        _show_use(card),
        _tabulate_results(card, results) if results else "",
        _describe_data(card, counts),
        _describe_recipe(card, _name_sets(counts, is_held_out)),
        _describe_preprocessing(card),
        _name_limits(card),
        LICENSE,
        f"sha256 of {WEIGHTS}: `{digest}`\n\n{MARK}",
    ]
    text = "\n\n".join(part for part in parts if part)
    return str(huggingface_hub.ModelCard(f"---\n{data.to_yaml()}\n---\n\n{text}\n"))


def change_metadata(page: str, metadata: Mapping[str, Any]) -> str:
    """A page with other metadata of the hub's, such as license, language, datasets or widget.

    Raises:
        ValueError: the hub does not know them in this form.
    """
    if not metadata:
        return page
    changed = huggingface_hub.ModelCard(page)
    changed.data = huggingface_hub.ModelCardData(**{**vars(changed.data), **metadata})
    if metadata.get("license"):
        changed.text = changed.text.replace(LICENSE, f"## License\n\n{_quote(str(metadata['license']))}")
    return str(changed)


def is_own_page(text: str) -> bool:
    """Whether a page is one that this program wrote, and may replace."""
    return MARK in text


def has_results(text: str) -> bool:
    """Whether the hub would show figures of a page.

    Raises:
        ValueError: the page's metadata cannot be read.
    """
    return bool(huggingface_hub.ModelCard(text).data.to_dict().get("model-index"))  # type: ignore[no-untyped-call]


def read_page(folder: Path) -> str | None:
    """The page of a model folder; None where there is none, or one of ours about other weights."""
    try:
        text = (folder / README).read_text(encoding="utf-8")
    except (OSError, ValueError):
        return None
    digest = read_digest(folder, WEIGHTS)
    return None if is_own_page(text) and (digest is None or digest not in text) else text


def drop_page(folder: Path) -> None:
    """Remove the page of a folder whose weights are about to change, where it is ours."""
    path = folder / README
    if path.is_file() and not path.is_symlink() and is_own_page(path.read_text(encoding="utf-8", errors="replace")):
        path.unlink()


# -- for the hub ------------------------------------------------------------------------------------------------------


def _describe_to_hub(card: ModelCard, results: Sequence[SetResult]) -> huggingface_hub.ModelCardData:
    kind, name = _name_data(card)
    found = [
        huggingface_hub.EvalResult(
            task_type="image-classification",
            task_name="Image Classification",
            dataset_type=kind,
            dataset_name=name,
            dataset_split="validation" if result.split == "val" else result.split,
            metric_type="accuracy",
            metric_name=metric,
            metric_value=round(value, 4),
        )
        for result in results
        for metric, value in (("Top-1 accuracy", result.top1), ("Top-5 accuracy", result.top5))
        if metric == "Top-1 accuracy" or card.spec.num_classes > 5
    ]
    return huggingface_hub.ModelCardData(
        library_name="alexnet_dist",
        pipeline_tag="image-classification",
        tags=["alexnet", "image-classification"],
        metrics=["accuracy"] if found else None,
        model_name=_name_model(card) if found else None,
        eval_results=found or None,
    )


def _name_model(card: ModelCard) -> str:
    """The run's name, where one is known."""
    run = card.source.get("run")
    return escape_text(run) if isinstance(run, str) and run else "AlexNet"


def _name_data(card: ModelCard) -> tuple[str, str]:
    source = str(card.settings.get("data.source"))
    return HUB_NAMES.get(source, (OWN_IMAGES, f"pictures of {len(card.classes)} classes"))


# -- for people -------------------------------------------------------------------------------------------------------


def _quote(name: str) -> str:
    """A name as it is, whatever Markdown would read in it."""
    text = escape_text(name)
    fence = "`" * (1 + max((len(run) for run in text.split("`")), default=0)) if "`" in text else "`"
    return f"{fence} {text} {fence}" if "`" in text else f"`{text}`"


def _introduce(card: ModelCard) -> str:
    names = ", ".join(map(_quote, card.classes[:MOST_CLASSES]))
    more = len(card.classes) - MOST_CLASSES
    tail = f" and {more:,} more, which config.json lists" if more > 0 else ""
    title = _name_model(card).replace("\n", " ")
    weights = sum(parameter.numel() for parameter in build_on_meta(card.spec).parameters())
    return (
        f"# {title}\n\nAlexNet (variant `{card.variant}`, {weights:,} weights) that tells {len(card.classes):,} "
        f"classes apart: {names}{tail}."
    )


def _show_use(card: ModelCard) -> str:
    return (
        "## Use\n\n"
        "```python\n"
        "from alexnet_dist import AlexNet\n\n"
        'model = AlexNet.from_pretrained("THIS_MODEL")  # its id on the hub, or its folder\n'
        'logits = model(model.preprocess(["picture.jpg"]))\n'
        "print(model.classes[logits[0].argmax()])\n"
        "```\n\n"
        "On the command line: `alexnet-dist predict FOLDER picture.jpg`."
    )


def _tabulate_results(card: ModelCard, results: Sequence[SetResult]) -> str:
    rows = ["| set | images | top-1 | 95 % interval | top-5 | loss |", "| --- | --- | --- | --- | --- | --- |"]
    for row in results:
        low, high = _find_interval(row.top1, row.num_examples)
        cells = (SET_NAMES[row.split], f"{row.num_examples:,}", f"{row.top1:.2%}", f"{low:.2%} to {high:.2%}")
        rows.append(f"| {' | '.join((*cells, f'{row.top5:.2%}', f'{row.loss:.4f}'))} |")
    notes = {
        "val": "The validation set has chosen these weights: its figures are a little too good.",
        "test": "The test set was read once, after training, and has chosen nothing.",
    }
    step, epoch = card.source.get("step"), card.source.get("epoch")
    of = f"The weights are those of step {step}" + (f" (epoch {epoch})" if epoch is not None else "") + ". "
    said = " ".join(notes[row.split] for row in results if row.split in notes)
    table = "\n".join(rows)
    return (
        f"## Results\n\n{of if step is not None else ''}Each image is one crop, and counted once.\n\n{table}\n\n{said}"
    )


def _find_interval(share: float, count: int) -> tuple[float, float]:
    """Where a share may lie that was measured on so many: Wilson's interval of 95 %."""
    z = NormalDist().inv_cdf(0.975)
    middle = (share + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * (share * (1 - share) / count + z**2 / (4 * count**2)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def _describe_data(card: ModelCard, counts: Mapping[str, int] | None) -> str:
    lines = [f"- {SET_NAMES[name]} images: {count:,}" for name, count in (counts or {}).items() if count]
    if (source := card.settings.get("data.source")) is not None:
        lines.append(f"- source: {HUB_NAMES[source][1]}" if source in HUB_NAMES else f"- source: `{source}`")
    if card.data_fingerprint is not None:
        lines.append(f"- fingerprint (sha256 of paths, sizes, labels and classes): `{card.data_fingerprint}`")
    return "## Data\n\n" + "\n".join(lines) if lines else ""


def _name_sets(counts: Mapping[str, int] | None, is_held_out: bool) -> list[str]:
    """Which sets of its own the run had; none where that is not known."""
    return [name for name in SET_NAMES if (counts or {}).get(name) and not (name == "val" and is_held_out)]


def _describe_recipe(card: ModelCard, sets: Sequence[str]) -> str:
    settings = {key: value for key, value in card.settings.items() if not key.startswith(_OF_MACHINES)}
    parts = []
    if isinstance(begun := card.source.get("pretrained"), dict) and begun.get("weights"):
        parts.append(f"Training began with the weights {_quote(str(begun['weights']))}.")
    if settings.get("optimizer.name") is not None:
        length, unit = settings.get("train.epochs"), "epoch"
        if length is None:
            length, unit = settings.get("train.max_steps"), "update"
        span = f"{length:,} {unit}{'s' if length != 1 else ''}"
        parts.append(
            f"{settings['optimizer.name']} at a rate of {settings.get('optimizer.lr'):g} "
            f"({settings.get('schedule.name')}), batches of {settings.get('train.global_batch_size')}, {span}, "
            f"seed {settings.get('seed')}, precision {settings.get('precision')}."
        )
        recipe = yaml.safe_dump(nest(settings), sort_keys=False, allow_unicode=True).rstrip()
        parts.append(
            "With the settings below in recipe.yaml this command trains it again, where capitals stand for your paths:"
            f"\n\n    {_name_command(str(settings.get('data.source')), sets)}\n\n"
            f"<details><summary>recipe.yaml</summary>\n\n```yaml\n{recipe}\n```\n\n</details>"
        )
    return "## Recipe\n\n" + "\n\n".join(parts) if parts else ""


def _name_command(source: str, sets: Sequence[str]) -> str:
    """What trains again; words in capitals stand for the user's own.

    Args:
        source: of the images.
        sets: which the run had; a part of another is none.
    """
    facts, command = SOURCES.get(source), "alexnet-dist train --config recipe.yaml"
    if facts is None or not facts.needs_root:
        return command
    names = [] if facts.can_download else [f" --data.{name} {name.upper()}" for name in sets or ["train"]]
    return f"{command} --data.root FOLDER{''.join(names)}"


def _describe_preprocessing(card: ModelCard) -> str:
    recipe, scale, side = card.evaluation, card.normalization, card.spec.image_size
    if recipe.resize is None:
        resized = "Pictures are not resized."
    elif isinstance(recipe.resize, int):
        resized = f"The shorter side of a picture is resized to {recipe.resize} pixels."
    else:
        resized = f"A picture is resized to {recipe.resize[0]} x {recipe.resize[1]} pixels (height x width)."
    colors = "3 channels, red, green and blue" if card.spec.in_channels == 3 else "1 channel, gray"
    mean, std = (", ".join(f"{value:g}" for value in values) for values in (scale.mean, scale.std))
    return (
        f"## Preprocessing\n\n{resized} The middle {side} x {side} pixels are the input, in {colors}. From each pixel "
        f"(0 to 255) the mean {mean} is subtracted, and the difference is divided by {std}. `model.preprocess` does it."
    )


def _name_limits(card: ModelCard) -> str:
    return (
        f"## Limits\n\n"
        f"- The answer is always one of these {len(card.classes):,} classes, also for a picture of something else.\n"
        "- The probabilities are those of a softmax, and not calibrated.\n"
        "- The figures hold for pictures like those of the data. They say nothing of other cameras, places or people.\n"
        "- AlexNet is a network of 2012. Newer ones of its size are more accurate."
    )
