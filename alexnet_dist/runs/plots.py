"""The figures of plots/: drawn after training, and again by `evaluate --plots`, from what the run folder holds."""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from alexnet_dist.assembly.evaluation import load_network, plan_evaluation
from alexnet_dist.assembly.loaders import build_augmentation, build_loader, build_plan
from alexnet_dist.assembly.sets import find_root
from alexnet_dist.base.durable import MANIFEST, hash_file, refuse_link, write_csv
from alexnet_dist.base.errors import MachineError
from alexnet_dist.base.places import find_place
from alexnet_dist.base.progress import phase
from alexnet_dist.base.run_record import METRICS, read_marker
from alexnet_dist.base.signals import StopRequest
from alexnet_dist.base.started import name_command
from alexnet_dist.base.text import cut_end, escape_text, shorten
from alexnet_dist.data.class_words import find_words
from alexnet_dist.data.engines.choose import REFERENCE
from alexnet_dist.data.engines.finish import show_images
from alexnet_dist.data.engines.loader import Loader
from alexnet_dist.data.index import SampleIndex
from alexnet_dist.data.plan import Plan
from alexnet_dist.figures.canvas import check_matplotlib, is_own_figure
from alexnet_dist.figures.confusion import CLASS_COLUMNS, Counts, count_confusion, draw_confusion, tabulate_classes
from alexnet_dist.figures.contact_sheet import draw_contact_sheet
from alexnet_dist.figures.curves import draw_curves
from alexnet_dist.figures.filters import draw_filters
from alexnet_dist.figures.overlay import blend_evidence
from alexnet_dist.inference.explain import explain_classes
from alexnet_dist.inference.model_folder import ModelCard, name_class, read_card, read_model_weights
from alexnet_dist.parallel.runtime import Runtime
from alexnet_dist.runs.folder import PLOTS, relative_path
from alexnet_dist.runs.ownership import FIRST_WORDS, check_ownership, is_made_here, is_own_table, mark_folder
from alexnet_dist.runs.pictures import CONV1, count_towers
from alexnet_dist.runs.start import Start
from alexnet_dist.settings.schema import Config
from alexnet_dist.tracking.pictures import Judgment, Picture, Pixels
from alexnet_dist.tracking.trackers import read_rows
from alexnet_dist.training.evaluate import evaluate
from alexnet_dist.training.gate import BatchGate
from alexnet_dist.training.predictions import Predictions, find_worst, join_predictions

logger = logging.getLogger("alexnet_dist")

NUM_PICTURES = 24  # on a contact sheet
LONGEST_CLASS, LONGEST_FILE = 15, 26  # characters below a picture; beside a class stand a word and a probability
PREDICTION_COLUMNS = (
    *("path", "true_class", "predicted_class", "confidence", "true_confidence", "right"),
    *("true_words", "predicted_words"),
)
OF_A_RUN = {"curves.png", "conv1.png", "inputs.png"}
OF_A_SET = {"classes.csv", "predictions.csv", "confusion.png", "worst.png", "worst_explained.png"}
NAMES = {"val": "validation", "test": "test"}


@dataclass(frozen=True, eq=False)
class Judged:
    """What the network said of a set.

    Args:
        split: val or test.
        index: the set.
        predictions: a row for each of its images.
        worst: the worst of them, once they are drawn.
    """

    split: str
    index: SampleIndex
    predictions: Predictions
    worst: list[Judgment] = field(default_factory=list)


def show_class(name: str) -> str:
    """A class in a figure: there is room for its words alone, or for its name."""
    return find_words(name) or escape_text(name)


@dataclass(frozen=True, eq=False)
class Subject:
    """What is drawn.

    Args:
        run: the run folder, or a model folder that stands on its own.
        model: the model folder.
        card: what it says about its weights.
        config: settings of the run.
        runtime: this process by itself.
        engine: what makes the training inputs.
    """

    run: Path
    model: Path
    card: ModelCard
    config: Config
    runtime: Runtime
    engine: str

    @property
    def name(self) -> str:
        """Of the run, in titles."""
        return escape_text(find_place(self.run).name)

    def name_class(self, label: int) -> str:
        """A class in a figure."""
        return show_class(name_class(self.card, label))


def draw_after_training(start: Start, step: int) -> list[Judgment]:
    """Draw a finished run, in the main process after the others have been let go. Whatever fails costs a warning.

    The validation set, or without one the test set, is looked at once more, with the weights of model/. Where the run
    had ended before, at the same step and with the same rows and weights, only what is missing is drawn.

    Args:
        start: of the run.
        step: at which it has ended.

    Returns:
        The worst predictions that were drawn.
    """
    names, judged = _list_missing(start, step), list[Judged]()
    if not names:
        return []
    try:
        check_matplotlib()
    except MachineError as error:
        logger.info("no figures: %s", error)
        return []
    _guard(f"{PLOTS}/", lambda: _draw_run(start, step, names, judged))
    return judged[0].worst if judged else []


def _list_missing(start: Start, step: int) -> set[str]:
    """The figures that a run which has ended at a step lacks: all, unless the last drawing was of just this end."""
    folder, source = start.folder / PLOTS, _hash_source(start.folder, start.folder / "model")
    has_set = start.splits.val is not None or start.splits.test is not None
    wanted = {*OF_A_RUN, *(OF_A_SET if has_set else ())}
    marked = read_marker(folder)
    # Earlier versions noted no source, still earlier ones no step.
    is_drawn = marked.get("step", start.resumption.ended_at) == step and marked.get("source", source) == source
    return {name for name in wanted if not (folder / name).is_file()} if is_drawn else wanted


def _hash_source(run: Path, model: Path) -> str:
    """sha256 of what figures show: a run may come to the same step with other rows, or with other weights."""
    digests = [hash_file(path) if path.is_file() else "" for path in (run / METRICS, model / MANIFEST)]
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


def _draw_run(start: Start, step: int, names: Collection[str], judged: list[Judged]) -> None:
    model, splits, stop = start.folder / "model", start.splits, start.stop
    runtime = start.runtime.alone()
    subject = Subject(start.folder, model, read_card(model), start.config, runtime, start.engine.name)
    split, index = ("val", splits.val) if splits.val is not None else ("test", splits.test)
    if index is not None and not OF_A_SET.isdisjoint(names):
        logger.info("drawing figures, with one more pass over the %s set", NAMES[split])
        predictions = partial(judge_set, subject, index, start.sizes.micro, stop)
        _guard(f"{PLOTS}/confusion.png", lambda: judged.append(Judged(split, index, predictions())))
    if not any(stop.counts()):
        draw_figures(subject, judged[0] if judged else None, lambda: splits.train, step, names)


def judge_set(subject: Subject, index: SampleIndex, batch_size: int, stop: StopRequest) -> Predictions:
    """What the weights of model/ say of a set.

    Raises:
        InterruptedRunError: a signal asked to stop.
    """
    config, runtime, card = subject.config, subject.runtime, subject.card
    model = load_network(subject.model, card, runtime, config.channels_last)
    plan = plan_evaluation(config.data, card.evaluation, index, batch_size, 1, ten_crop=False)
    loader = build_loader(runtime, config.data, index, plan, card.normalization, config.channels_last, subject.engine)
    parts: list[Predictions] = []
    admit = BatchGate(runtime, skip_bad_files=True, stop=stop).admit
    evaluate(runtime, model, loader, admit, parts.append, name="drawing figures: evaluating")
    return join_predictions(parts)


def _draw_shown(name: str, action: Callable[[], None]) -> bool:
    with phase(f"drawing {name}"):
        return _guard(f"{PLOTS}/{name}", action)


def draw_figures(
    subject: Subject,
    judged: Judged | None,
    find_training: Callable[[], SampleIndex],
    step: int | None,
    names: Collection[str] = OF_A_RUN | OF_A_SET,
) -> None:
    """Draw what can be drawn, each figure for itself: one that fails costs a warning.

    Args:
        subject: what is drawn.
        judged: for the confusion matrix, the table of classes and the worst predictions; None = without these.
        find_training: gives the training images.
        step: at which the run has ended; None where that is not known.
        names: the figures that are wanted.
    """
    folder = subject.run / PLOTS
    if not _guard(f"{PLOTS}/", lambda: _open_folder(folder, subject.run)):
        return
    actions: dict[str, Callable[[], None]] = {}
    if (subject.run / METRICS).is_file():
        actions["curves.png"] = lambda: _draw_curves(subject, folder / "curves.png")
    actions["conv1.png"] = lambda: _draw_conv1(subject, folder / "conv1.png")
    if judged is not None and len(judged.predictions.ids):
        actions["classes.csv"] = lambda: _write_classes(subject, judged, folder / "classes.csv")
        actions["predictions.csv"] = lambda: _write_predictions(subject, judged, folder / "predictions.csv")
        actions["confusion.png"] = lambda: _draw_confusion(subject, judged, folder / "confusion.png")
        actions["worst.png"] = lambda: _draw_worst(subject, judged, folder / "worst.png")
        explained = folder / "worst_explained.png"
        actions["worst_explained.png"] = lambda: _draw_worst_explained(subject, judged, explained)
    actions["inputs.png"] = lambda: _draw_inputs(subject, find_training(), folder / "inputs.png")
    kept = {name for name in actions if name in names and not _is_ours(folder / name)}
    if kept:
        remedy = f"move them away, and draw with {name_command('evaluate')} RUN --plots"
        logger.warning("%s: %s not drawn by this version: they stay; %s", folder, ", ".join(sorted(kept)), remedy)
    names = {*names} - kept
    drawn = [name for name, action in actions.items() if name in names and _draw_shown(name, action)]
    facts = {"step": step, "source": _hash_source(subject.run, subject.model)}
    _guard(f"{PLOTS}/", lambda: mark_folder(folder, "plots", facts))
    if drawn:
        logger.info("figures: %s (%s)", folder, ", ".join(drawn))


def draw_judged(subject: Subject, judged: Judged) -> list[Picture]:
    """The confusion matrix and the sheet of the worst predictions, in no folder. Whatever fails costs a warning."""
    draws = {"confusion": _draw_confusion, "worst": _draw_worst}
    return _draw_apart({f"{judged.split}/{name}": partial(draw, subject, judged) for name, draw in draws.items()})


def draw_first_inputs(subject: Subject, index: SampleIndex) -> list[Picture]:
    """The first training images as the network sees them, in no folder. Whatever fails costs a warning."""
    return _draw_apart({"train/inputs": partial(_draw_inputs, subject, index)})


def _draw_apart(draws: Mapping[str, Callable[[Path], None]]) -> list[Picture]:
    pictures = []
    with tempfile.TemporaryDirectory() as folder:
        for number, (name, draw) in enumerate(draws.items()):
            path = Path(folder) / f"{number}.png"
            if _guard(name, partial(draw, path)):
                with Image.open(path) as drawn:
                    pictures.append(Picture(name, np.asarray(drawn.convert("RGB"))))
    return pictures


def _is_ours(path: Path) -> bool:
    """Whether a name is free, or that of a figure or table drawn here: anything else is its user's."""
    if not os.path.lexists(path):
        return True
    return is_own_table(path) if path.name in FIRST_WORDS else is_own_figure(path)


def _open_folder(folder: Path, run: Path) -> None:
    """Make the folder for figures, and note that what lies in it is of no one step from now on.

    Raises:
        UsageError: beside a model that stands on its own there are figures of somebody else's.
    """
    if not is_made_here(run, "run"):
        check_ownership(folder, "plots", remedy=f"move {PLOTS}/ away")
    refuse_link(folder)
    folder.mkdir(exist_ok=True)
    mark_folder(folder, "plots", {"step": None})


def _guard(what: str, action: Callable[[], None]) -> bool:
    """Whether something was done; a figure must not end a run, whatever it raises."""
    try:
        action()
    except Exception as error:  # noqa: BLE001 (a figure, and no run, is lost)
        why = " ".join(f"{type(error).__name__}: {error}".split())
        logger.warning("%s not drawn (%s); try again with %s RUN --plots", what, why, name_command("evaluate"))
        return False
    return True


# -- one figure each --------------------------------------------------------------------------------------------------


def _draw_curves(subject: Subject, path: Path) -> None:
    title = f"{subject.name}: loss and accuracy\n{describe_recipe(subject.config)}"
    draw_curves(path, read_rows(subject.run / METRICS), title)


def describe_recipe(config: Config) -> str:
    """What a run was, in one line: network, batch, optimizer, schedule and seed."""
    model, optimizer = config.model, config.optimizer
    parts = (
        f"{model.variant}, {model.image_size} px",
        f"batches of {config.train.global_batch_size}",
        f"{optimizer.name}, rate {optimizer.lr:g} ({config.schedule.name})",
        f"seed {config.seed}",
    )
    return ", ".join(parts)


def _draw_conv1(subject: Subject, path: Path) -> None:
    weights = read_model_weights(subject.model)[CONV1]  # (filters, C, 11, 11)
    num_towers = count_towers(subject.card.spec)
    title = f"{subject.name}: the {len(weights)} filters of conv1 (gray: 0)"
    draw_filters(path, weights.float().numpy(), num_towers, title)


def _count_confusion(subject: Subject, judged: Judged) -> tuple[Counts, list[str]]:
    """The confusion matrix, and the names of its rows."""
    rows, classes = judged.predictions, len(subject.card.classes)
    num_classes = max(classes, int(rows.predicted.max()) + 1)  # the network may have more outputs
    counts = count_confusion(rows.labels, rows.predicted, num_classes)
    return counts, [name_class(subject.card, label) for label in range(num_classes)]


def _write_classes(subject: Subject, judged: Judged, path: Path) -> None:
    counts, names = _count_confusion(subject, judged)
    write_csv(path, CLASS_COLUMNS, tabulate_classes(counts, names, [find_words(name) or "" for name in names]))


def _write_predictions(subject: Subject, judged: Judged, path: Path) -> None:
    """A row for each image, in the order of the set; paths are those below data.root, where there are files."""
    place, rows = _find_place(subject, judged), []
    for sample, label, predicted, confidence, truth in zip(*judged.predictions, strict=True):
        names = [name_class(subject.card, number) for number in (label, predicted)]
        picture = str(place / judged.index.paths[sample])
        is_right = str(bool(label == predicted))  # pandas reads it as a truth value
        words = [find_words(name) or "" for name in names]
        rows.append((picture, *names, f"{confidence:.6f}", f"{truth:.6f}", is_right, *words))
    write_csv(path, PREDICTION_COLUMNS, rows)


def _find_place(subject: Subject, judged: Judged) -> PurePosixPath:
    """Where the files of a set lie below data.root."""
    return PurePosixPath(relative_path(judged.index.root, find_root(subject.config.data)))


def _draw_confusion(subject: Subject, judged: Judged, path: Path) -> None:
    counts, names = _count_confusion(subject, judged)
    right, images = int(counts.trace()), len(judged.predictions.ids)
    title = f"{subject.name}: {right:,} of {images:,} {NAMES[judged.split]} images right ({right / images:.1%})"
    draw_confusion(path, counts, [show_class(name) for name in names], title)


def _draw_worst(subject: Subject, judged: Judged, path: Path) -> None:
    sheet, rows = _pick_worst(subject, judged), judged.predictions
    shown = _draw_batch(path, sheet.loader, sheet.captions, sheet.title, sheet.marks)
    place = _find_place(subject, judged)
    for number, pixels in shown.items():
        _, label, predicted, confidence, truth = (column[sheet.worst[number]] for column in rows)
        names = (subject.name_class(int(label)), subject.name_class(int(predicted)))
        picture = str(place / sheet.loader.index.paths[number])
        judged.worst.append(Judgment(pixels, picture, *names, float(confidence), float(truth)))


def _draw_worst_explained(subject: Subject, judged: Judged, path: Path) -> None:
    """The same pictures as in worst.png, with the evidence for what the network said of each."""
    sheet, config = _pick_worst(subject, judged), subject.config
    model = load_network(subject.model, subject.card, subject.runtime, config.channels_last)
    said = torch.from_numpy(judged.predictions.predicted[sheet.worst])  # (N,)

    def explain(pictures: Pixels, images: Tensor, kept: list[int]) -> Pixels:
        evidence = explain_classes(model, images.float(), said[kept])  # (N, S, S)
        return blend_evidence(pictures, evidence.cpu().numpy())

    title = f"{sheet.title}; bright: what speaks for the class that was said"
    _draw_batch(path, sheet.loader, sheet.captions, title, sheet.marks, explain)


class Sheet(NamedTuple):
    """The worst predictions of a set, the worst first."""

    worst: npt.NDArray[np.int64]  # (N,) rows of the predictions
    loader: Loader  # of the pictures, in one batch
    captions: Sequence[tuple[str, ...]]
    marks: list[str]
    title: str


def _pick_worst(subject: Subject, judged: Judged) -> Sheet:
    rows = judged.predictions
    worst = find_worst(rows, NUM_PICTURES)
    index = judged.index.subset(rows.ids[worst])
    plan = plan_evaluation(subject.config.data, subject.card.evaluation, index, len(worst), 1, ten_crop=False)
    captions = [
        (
            _rate("true", subject, label, truth),
            _rate("said", subject, predicted, confidence),
            shorten(escape_text(os.path.basename(picture)), LONGEST_FILE),
        )
        for picture, (_, label, predicted, confidence, truth) in zip(
            index.paths, zip(*(column[worst] for column in rows), strict=True), strict=True
        )
    ]
    is_wrong = rows.labels != rows.predicted
    marks = np.where(is_wrong[worst], "wrong", "right").tolist()
    num_wrong, images = int(is_wrong.sum()), f"{len(rows.ids):,} {NAMES[judged.split]} images"
    most = f"the worst of {images}; {num_wrong:,} wrong"
    title = most if "right" not in marks else f"the {num_wrong} wrong of {images}, then the least sure right ones"
    # The cache engine has no cache of this small set.
    loader = _build_loader(subject, index, plan, REFERENCE)
    return Sheet(worst, loader, captions, marks, f"{subject.name}: {title}")


def _rate(word: str, subject: Subject, label: int, probability: float) -> str:
    return f"{word}: {cut_end(subject.name_class(label), LONGEST_CLASS)}, {probability:.1%}"


def _draw_inputs(subject: Subject, index: SampleIndex, path: Path) -> None:
    config, size = subject.config, subject.card.spec.image_size
    # The order of a pass does not depend on the size of its batches: these are the run's own first images.
    count = min(NUM_PICTURES, len(index))
    plan = build_plan(config.data, index, build_augmentation(config.augment, size), count, config.seed, shuffle=True)
    captions = [(show_class(index.classes[index.labels[sample]]),) for sample in plan.at(0).ids]
    title = f"{subject.name}: the first training images, as the network sees them"
    _draw_batch(path, _build_loader(subject, index, plan, subject.engine), captions, title)


def _draw_batch(
    path: Path,
    loader: Loader,
    captions: Sequence[Sequence[str]],
    title: str,
    marks: Sequence[str] | None = None,
    change: Callable[[Pixels, Tensor, list[int]], Pixels] | None = None,
) -> dict[int, Pixels]:
    """A sheet of a loader's first batch, without what could not be decoded; the pictures by their place in it.

    Args:
        path: the PNG.
        loader: of the pictures.
        captions, title, marks: see `draw_contact_sheet`.
        change: makes of pictures, the network's input and their places what is shown.
    """
    batch = next(iter(loader.batches(0, 1)))
    is_there = batch.mask.bool().cpu()
    images = batch.images[is_there.to(batch.images.device)]
    pictures = show_images(images, loader.normalization)
    kept = is_there.nonzero()[:, 0].tolist()
    if change is not None:
        pictures = change(pictures, images, kept)
    kept_marks = None if marks is None else [marks[number] for number in kept]
    draw_contact_sheet(path, pictures, [captions[number] for number in kept], title, kept_marks)
    return dict(zip(kept, pictures, strict=True))


def _build_loader(subject: Subject, index: SampleIndex, plan: Plan, engine: str) -> Loader:
    """A loader of one batch: processes beside this one would not be worth their start."""
    config = subject.config
    data, normalization = replace(config.data, workers=0), subject.card.normalization
    return build_loader(subject.runtime, data, index, plan, normalization, config.channels_last, engine)
