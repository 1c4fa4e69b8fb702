"""Pictures, tables and models for Weights & Biases. What W&B keeps until it is uploaded stays in the run folder."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alexnet_dist.base.text import escape_text
from alexnet_dist.tracking.pictures import Judgment, Pictures
from alexnet_dist.tracking.trackers import Row

WORST = "worst_predictions"
COLUMNS = ("picture", "truth", "prediction", "confidence", "true_confidence", "file")
MODELS, STAGED = "models", "artifacts"  # below wandb/ of the run folder; the second name is W&B's


def log_pictures(run: Any, folder: Path, pictures: Pictures, tells_of_images: bool) -> None:
    """Log pictures and the table of the worst predictions at their step.

    Args:
        run: W&B's.
        folder: wandb/ of the run folder.
        pictures: what there is.
        tells_of_images: whether W&B may get images, and names of files and classes.
    """
    import wandb

    shown: dict[str, Any] = {
        picture.name: wandb.Image(str(picture.content) if isinstance(picture.content, Path) else picture.content)
        for picture in pictures.pictures
        if tells_of_images or not picture.tells_of_images
    }
    with _staged_in(folder):
        if pictures.worst and tells_of_images:
            shown[WORST] = wandb.Table(columns=list(COLUMNS), data=[_make_row(judgment) for judgment in pictures.worst])
        if shown:
            run.log({"step": pictures.step, **shown})


def _make_row(judgment: Judgment) -> list[Any]:
    import wandb

    names = (escape_text(name) for name in (judgment.truth, judgment.prediction))
    figures = (judgment.confidence, judgment.true_confidence)
    return [wandb.Image(judgment.pixels), *names, *figures, escape_text(judgment.path)]


def stage_model(model: Path, folder: Path, step: int) -> Path:
    """Second names for the files of a model folder, which may then be replaced; they take no place on the disk.

    Args:
        model: the model folder.
        folder: wandb/ of the run folder.
        step: whose weights they are.
    """
    staged = folder / MODELS / f"step-{step:08d}"
    shutil.rmtree(staged, ignore_errors=True)
    staged.mkdir(parents=True)
    for path in model.iterdir():
        try:
            os.link(path, staged / path.name)
        except OSError:  # a file system without second names
            shutil.copyfile(path, staged / path.name)
    return staged


def log_model(run: Any, folder: Path, staged: Path, run_id: str, facts: Row) -> None:
    """Log a staged model as a version of the run's artifact, which W&B does not copy."""
    import wandb

    artifact = wandb.Artifact(f"model-{run_id}", "model", metadata=dict(facts))
    for path in sorted(staged.iterdir()):
        artifact.add_file(str(path), name=path.name, policy="immutable", skip_cache=True)
    with _staged_in(folder):
        run.log_artifact(artifact, aliases=["best", "latest"])


def log_code(run: Any, folder: Path, package: Path) -> None:
    """Log the Python files of the package as W&B's artifact of code."""
    with _staged_in(folder):
        run.log_code(str(package), include_fn=lambda path: path.endswith(".py"))


def clear_staged(folder: Path) -> None:
    """Remove what was kept until it would be uploaded."""
    for name in (MODELS, STAGED):
        if not (folder / name).is_symlink():
            shutil.rmtree(folder / name, ignore_errors=True)


@contextlib.contextmanager
def _staged_in(folder: Path) -> Iterator[None]:
    """Let W&B keep copies below a folder, in place of the home folder."""
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = str(folder.absolute())
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_DATA_DIR"]
        else:
            os.environ["WANDB_DATA_DIR"] = before
