"""model/: weights and everything needed to use them, in one folder that may be moved and given away."""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alexnet_dist.base.disk_errors import name_reason
from alexnet_dist.base.durable import MANIFEST, find_damage, format_json, read_json_file, write_folder
from alexnet_dist.base.errors import CheckpointError
from alexnet_dist.base.nested import flatten, nest
from alexnet_dist.base.places import describe_missing
from alexnet_dist.base.ranks import rank_from_environment
from alexnet_dist.base.run_record import find_run, is_step_name, read_run
from alexnet_dist.base.text import name_few, quote_word
from alexnet_dist.data.decode import DEFAULT_MAX_PIXELS
from alexnet_dist.data.engines.loader import Normalization
from alexnet_dist.data.plan import Augmentation
from alexnet_dist.inference import checkpoints
from alexnet_dist.inference.card_checks import FORMAT, check_card
from alexnet_dist.inference.checkpoints import choose_checkpoint, list_checkpoints, step_of
from alexnet_dist.inference.weights import check_shapes, pack_tensors
from alexnet_dist.inference.weights_file import read_shapes, read_weights_file
from alexnet_dist.models import AlexNet, AlexNetSpec, spec_to_dict

logger = logging.getLogger("alexnet_dist")

WEIGHTS, CONFIG = "model.safetensors", "config.json"
BEST, LAST = "best", "last"  # weights of a run


# Settings that go with the weights: numbers and words of ours. Paths and names of a user's stay in the run folder.
_TRAVELING = (
    *("seed", "precision", "channels_last", "model.", "augment.", "optimizer.", "schedule.", "train.", "parallel."),
    *("data.source", "data.val_fraction", "data.folds", "data.fold", "data.on_bad_file", "data.max_pixels"),
    "data.synthetic_",
)
_STAYING = ("model.pretrained",)
# Of models of older versions: where images are read. They also said where something is written: nobody asks for that.
_READ_BEFORE = ("data.root", "data.train", "data.val", "data.test", "data.classes")


@dataclass(frozen=True)
class ModelCard:
    """What config.json says about the weights beside it.

    Args:
        variant: name of the variant.
        spec: the network.
        classes: names in the order of the outputs.
        evaluation: resize and crop that evaluation and prediction use.
        normalization: the input scale.
        source: where the weights come from (run, step, epoch, top1, data settings): plain JSON.
    """

    variant: str
    spec: AlexNetSpec
    classes: tuple[str, ...]
    evaluation: Augmentation
    normalization: Normalization
    source: dict[str, Any]

    @property
    def settings(self) -> dict[str, Any]:
        """The run's settings as far as they go with the weights, {dotted name: value}."""
        settings = self.source.get("settings")
        values = flatten(settings) if isinstance(settings, dict) else {}
        return {key: value for key, value in values.items() if _travels(key) or key in _READ_BEFORE}

    @property
    def data_fingerprint(self) -> str | None:
        """Of the sets that the network was trained and chosen with; None where it is not known."""
        return self.source.get("data_fingerprint")

    @property
    def max_pixels(self) -> int:
        """The limit on a picture's size that the network was trained with."""
        limit: int = self.settings.get("data.max_pixels", DEFAULT_MAX_PIXELS)
        return limit


def describe_source(settings: dict[str, Any], pretrained: dict[str, Any] | None, fingerprint: str) -> dict[str, Any]:
    """What config.json says of a run beside its name: nothing that tells of the machine or its user.

    Args:
        settings: all of the run, nested.
        pretrained: what run.json says of the weights that it began with; None = fresh ones.
        fingerprint: of the run's sets.
    """
    origin = {"pretrained": pretrained} if pretrained else {}
    return keep_public({**origin, "data_fingerprint": fingerprint, "settings": settings})


def keep_public(source: dict[str, Any]) -> dict[str, Any]:
    """What may be given away of what a card says of a run: no path, and no setting that names a place or a person."""
    public = dict(source)
    if isinstance(pretrained := source.get("pretrained"), dict):
        public["pretrained"] = {**pretrained, "weights": Path(str(pretrained.get("weights"))).name}
    if isinstance(settings := source.get("settings"), dict):
        public["settings"] = nest({key: value for key, value in flatten(settings).items() if _travels(key)})
    return public


def _travels(key: str) -> bool:
    return key.startswith(_TRAVELING) and key not in _STAYING


def name_class(card: ModelCard, label: int) -> str:
    """The class of an output; a network may have more outputs than classes."""
    return card.classes[label] if label < len(card.classes) else f"output {label}"


def save_model_folder(folder: Path, tensors: dict[str, Tensor], card: ModelCard) -> None:
    """Replace model/ at once. Equal weights give a byte-identical model.safetensors."""
    write_folder(folder, pack_model(tensors, card))


def pack_model(tensors: dict[str, Tensor], card: ModelCard) -> dict[str, bytes]:
    """The files of a model folder, by name; see `save_model_folder`."""
    return {WEIGHTS: pack_tensors(tensors), CONFIG: pack_card(card)}


def pack_card(card: ModelCard) -> bytes:
    """config.json of a model folder."""
    values = {
        "format": FORMAT,
        "variant": card.variant,
        "spec": spec_to_dict(card.spec),
        "classes": list(card.classes),
        "preprocessing": {"evaluation": asdict(card.evaluation), "normalization": asdict(card.normalization)},
        "source": card.source,
    }
    return (format_json(values, CONFIG, indent=2) + "\n").encode()


def find_model_step(folder: Path) -> int | None:
    """The step of the weights in a model folder; None where it holds none that can be used."""
    if find_damage(folder, (WEIGHTS, CONFIG)) is not None:
        return None
    try:
        step = read_card(folder).source.get("step")
    except (CheckpointError, AttributeError):
        return None
    return step if isinstance(step, int) else None


def find_model_folder(path: Path, weights: str = BEST) -> Path:
    """The folder of weights that a path means: a model folder, a checkpoint, or what a run folder holds.

    Args:
        path: a model folder or a checkpoint, or a run folder.
        weights: of a run folder: best = model/, last = the newest intact checkpoint.

    Raises:
        CheckpointError: none of them, or no such weights in it.
    """
    if weights == LAST:
        return _find_last(path)
    for folder in (path, path / "model"):
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file():
            return folder
    if is_checkpoint(path):
        return path
    why = f"neither it nor its model/ holds {WEIGHTS} and {CONFIG}"
    there = list_checkpoints(path / "checkpoints")
    remedy = f"give {there[0]}" if there else "give a run folder after training, its model/ or a checkpoint"
    where = os.path.abspath(path)
    if not os.path.lexists(path):
        where, beside, near = describe_missing(path)
        why, remedy = f"no such folder, {beside}", f"did you mean '{near}'? {remedy}" if near else remedy
    models = [] if there else _list_models(path)
    if models:
        remedy = f"{remedy}: {name_few(map(quote_word, models))}"
    raise CheckpointError("no model", where=where, why=why, remedy=remedy)


def _list_models(path: Path) -> list[Path]:
    """The run folders and model folders beside a path, in it, and in runs/."""
    found: dict[Path, None] = {}
    for folder in (path, path.parent, Path("runs")):
        with contextlib.suppress(OSError):
            found |= dict.fromkeys(sorted(file.parent for file in folder.glob(f"*/{WEIGHTS}")))
            found |= dict.fromkeys(sorted(file.parents[1] for file in folder.glob(f"*/model/{WEIGHTS}")))
    return [model for model in found if model != path / "model"]


def _find_last(path: Path) -> Path:
    run_id = read_run(path).get("run_id") if (path / "checkpoints").is_dir() else None
    found, notes = choose_checkpoint(path / "checkpoints", None, run_id)
    if rank_from_environment() == 0:
        for note in notes:
            logger.warning(note)
    if found is None:
        remedy = "give a run folder, or leave out --weights last"
        raise CheckpointError("no checkpoint", where=str(path), why="the last weights are in one", remedy=remedy)
    return found


def is_checkpoint(folder: Path) -> bool:
    """Whether a folder has the files of a checkpoint."""
    return all((folder / name).is_file() for name in (checkpoints.WEIGHTS, checkpoints.OPTIMIZER, checkpoints.STATE))


def weights_file(folder: Path) -> Path:
    """The file that holds the weights of a model folder or of a checkpoint."""
    return folder / (checkpoints.WEIGHTS if is_checkpoint(folder) else WEIGHTS)


def read_card(folder: Path) -> ModelCard:
    """Read config.json of a model folder or of a checkpoint, checked against manifest.json where there is one.

    A checkpoint of an older version has none: what its run's model/ says holds for it as well.

    Raises:
        CheckpointError: it is damaged, was changed, or is of a newer version.
    """
    if is_checkpoint(folder) and not (folder / CONFIG).is_file():
        return _read_card_beside(folder)
    _check_digest(folder, CONFIG)
    try:
        values = read_json_file(folder / CONFIG)
        if isinstance(values, dict) and isinstance(values.get("format"), int) and values["format"] > FORMAT:
            raise CheckpointError("model of a newer version", where=str(folder), remedy="update alexnet_dist")
        spec = check_card(values)
        preprocessing = values["preprocessing"]
        return ModelCard(
            variant=values["variant"],
            spec=spec,
            classes=tuple(values["classes"]),
            evaluation=Augmentation(**_tuples(preprocessing["evaluation"])),
            normalization=Normalization(**_tuples(preprocessing["normalization"])),
            source=values["source"],
        )
    except (OSError, ValueError) as error:
        why = name_reason(error) if isinstance(error, OSError) else str(error)
        remedy = "give a model folder as training or save_pretrained wrote it"
        raise CheckpointError("damaged model", where=str(folder / CONFIG), why=why, remedy=remedy) from error


def read_fitting_card(folder: Path) -> ModelCard:
    """As `read_card`, where the weights' file shows by its header that it fits the network that is described.

    It is asked for before a network is built: a description alone could take any amount of memory.

    Raises:
        CheckpointError: the folder is damaged, or its parts do not belong together.
    """
    card, path = read_card(folder), weights_file(folder)
    with torch.device("meta"):
        network = AlexNet(card.spec)
    try:
        check_shapes(network, read_shapes(path), str(folder), f"put back the {CONFIG} that these weights came with")
    except CheckpointError:
        _check_digest(folder, path.name)  # the better reason, if it is one
        raise
    return card


def _read_card_beside(folder: Path) -> ModelCard:
    run = find_run(folder)
    if run is None or not (run / "model" / CONFIG).is_file():
        raise CheckpointError(
            "this checkpoint does not say what its weights are",
            where=str(folder),
            why=f"it is of an older version, without {CONFIG}",
            remedy="start its run again with the same command: it then writes model/, and checkpoints that say it",
        )
    card = read_card(run / "model")
    kept = {key: value for key, value in card.source.items() if key not in ("step", "epoch", "val_top1")}
    return replace(card, source={**kept, "step": step_of(folder)} if is_step_name(folder) else kept)


def read_model_weights(folder: Path) -> dict[str, Tensor]:
    """The weights of a model folder or of a checkpoint, checked against manifest.json where there is one.

    Raises:
        CheckpointError: the file is damaged.
    """
    path = weights_file(folder)
    _check_digest(folder, path.name)
    return read_weights_file(path).tensors


def _check_digest(folder: Path, name: str) -> None:
    if not os.path.lexists(folder / MANIFEST):
        if name == CONFIG and rank_from_environment() == 0:
            logger.warning("%s has no %s: whether its files are what they were cannot be told", folder, MANIFEST)
        return
    damage = find_damage(folder, (name,))
    if damage is not None:
        remedy = f"put it back as it was, or remove {MANIFEST} to use the files as they are"
        raise CheckpointError("damaged model", where=str(folder), why=damage, remedy=remedy)


def _tuples(values: dict[str, Any]) -> dict[str, Any]:
    return {key: tuple(value) if isinstance(value, list) else value for key, value in values.items()}
