"""`AlexNet.from_pretrained`: a trained network with its classes and its preprocessing, from a folder or from the hub.

The folder is the run's model/, and `save_pretrained` writes such a folder.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from huggingface_hub.errors import HFValidationError
from torch import Tensor

from alexnet_dist import models
from alexnet_dist.base.durable import MANIFEST, read_object, write_into_folder
from alexnet_dist.base.errors import CheckpointError, MachineError, UsageError
from alexnet_dist.base.run_record import find_run
from alexnet_dist.data.engines.finish import scale_pixels
from alexnet_dist.data.preprocess import Picture, crop_pictures, list_pictures
from alexnet_dist.inference.model_folder import (
    CONFIG,
    WEIGHTS,
    ModelCard,
    find_model_folder,
    keep_public,
    pack_model,
    read_fitting_card,
    read_model_weights,
)
from alexnet_dist.inference.weights import load_weights

# What `from_pretrained` hands on to `snapshot_download`, and `save_pretrained` to `push_to_hub`.
DOWNLOADING = (
    *("revision", "cache_dir", "token", "force_download", "local_files_only", "local_dir"),
    *("endpoint", "etag_timeout", "headers", "user_agent", "max_workers", "tqdm_class"),
)
SAVING = (
    *("repo_id", "push_to_hub", "config", "model_card_kwargs", "commit_message", "private", "token", "branch"),
    *("create_pr", "allow_patterns", "ignore_patterns", "delete_patterns"),
)
# Words of other libraries' `from_pretrained`, and what to do here.
_ELSEWHERE = {
    "num_classes": "the folder says how many classes it has; --model.pretrained begins a training with others",
    "torch_dtype": "use .to(dtype) afterwards",
    "dtype": "use .to(dtype) afterwards",
    "device": "use .to(device) afterwards",
    "device_map": "use .to(device) afterwards",
}


class AlexNet(
    models.AlexNet,
    PyTorchModelHubMixin,
    library_name="alexnet_dist",
    pipeline_tag="image-classification",
    tags=["alexnet"],
):
    """The network with what a user of its weights needs beside them.

    Images: (B, in_channels, image_size, image_size), as `preprocess` gives them. Logits: (B, num_classes).
    `save_pretrained(folder)` and `push_to_hub(repo_id)` are huggingface_hub's; the folder they write is one that
    evaluate, predict and export accept.

    Args:
        card: network, classes, preprocessing, and where the weights come from.
    """

    __jit_unused_properties__ = ("classes",)  # TorchScript would compile them

    def __init__(self, card: ModelCard) -> None:
        super().__init__(card.spec)
        self.card = card

    @property
    def classes(self) -> tuple[str, ...]:
        """Names in the order of the outputs."""
        return self.card.classes

    def preprocess(self, pictures: Picture | Iterable[Picture]) -> Tensor:
        """What evaluation makes of pictures: (B, in_channels, image_size, image_size), on the network's device.

        It is computed in float32, and given in the network's dtype.

        Args:
            pictures: one, or several: paths, bytes of files, files opened with "rb", pictures of Pillow's, uint8
                arrays (H, W, C), or uint8 tensors (C, H, W). Of an array or tensor of four axes each is one.

        Raises:
            TypeError: something else; it is named.
            UnreadableImageError: a file that cannot be used; the traceback's last line says which of the pictures.
            DataError: a picture that is smaller than the crop; likewise.
        """
        channels, card = self.spec.in_channels, self.card
        pixels = crop_pictures(list_pictures(pictures), card.evaluation, channels, card.max_pixels)  # (B, S, S, C)
        shifts = torch.zeros(len(pixels), 3)
        images = scale_pixels(card.normalization, pixels, shifts, channels_last=False)  # (B, C, S, S)
        like = next(self.parameters())
        return images.to(like.device, like.dtype)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **download: Any) -> Self:
        """A network in evaluation mode, on the CPU, in float32.

        Args:
            pretrained_model_name_or_path: a run folder, its model/ or one of its checkpoints, a folder of
                `save_pretrained`, or the id of a model on the Hugging Face hub. A folder that is there goes first.
            download: revision, cache_dir, token, force_download, local_files_only; see huggingface_hub.

        Raises:
            TypeError: another keyword.
            CheckpointError: no model there, or a damaged one.
            MachineError: the hub does not give it.
        """
        _check_keywords("from_pretrained", download, DOWNLOADING)
        folder = _find_folder(pretrained_model_name_or_path, download)
        model = cls(read_fitting_card(folder))
        load_weights(model, read_model_weights(folder), str(folder))
        return model.eval()

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Save a folder that evaluate, predict and export accept; see huggingface_hub.

        Args:
            save_directory: where; a folder that was saved before is replaced.
            options: repo_id, push_to_hub and the like.

        Raises:
            TypeError: another keyword.
            UsageError: the folder is the model/ of a run, or holds files of something else under the names of ours.
            MachineError: it cannot be written.
        """
        _check_keywords("save_pretrained", options, SAVING)
        _check_target(Path(save_directory))  # before huggingface_hub removes config.json
        written: str | None = super().save_pretrained(save_directory, **options)
        return written

    def _save_pretrained(self, save_directory: Path) -> None:
        """The hub's way to say how its `save_pretrained` writes."""
        card = dataclasses.replace(self.card, source=keep_public(self.card.source))  # older versions told more
        write_into_folder(save_directory, pack_model(self.state_dict(), card), "save_directory")


from_pretrained = AlexNet.from_pretrained


def _check_keywords(function: str, given: Iterable[str], known: Sequence[str]) -> None:
    """Refuse keywords that huggingface_hub would pass over: they were meant to change something."""
    hints = []
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.7)
            else_hint = _ELSEWHERE.get(name, f"it takes {', '.join(known[:5])}, ...")
            hints.append(f"{name!r} ({f'did you mean {near[0]!r}?' if near else else_hint})")
    if hints:
        raise TypeError(f"{function}() got an unexpected keyword argument {', '.join(hints)}")


def _check_target(folder: Path) -> None:
    """Refuse to replace the best weights of a run, or files of something else.

    Raises:
        UsageError: they are there.
    """
    there = [name for name in (CONFIG, WEIGHTS, MANIFEST) if os.path.lexists(folder / name)]
    why = ""
    if there and folder.absolute().name == "model" and find_run(folder.absolute()) is not None:
        why = "it is the model/ of a run"
    elif there and not {"format", "spec"} <= read_object(folder / CONFIG).keys():
        why = f"it holds a {there[0]} that is no model of ours"
    if why:
        raise UsageError("cannot save into this folder", where=str(folder), why=why, remedy="give another folder")


def _find_folder(name: str | Path, download: dict[str, Any]) -> Path:
    if Path(name).exists():
        return find_model_folder(Path(name))
    remedy = "give a run folder or its model/ after training, or the id of a model on the hub"
    try:
        folder = Path(snapshot_download(str(name), allow_patterns=[WEIGHTS, CONFIG, MANIFEST], **download))
    except HFValidationError:
        raise CheckpointError("no model", where=str(name), why="no such folder", remedy=remedy) from None
    except Exception as error:  # the transport's errors are of kinds of its own
        why = f"no such folder, and the hub does not give it: {str(error).strip().partition(chr(10))[0]}"
        raise MachineError("no model", where=str(name), why=why, remedy=remedy) from error
    return find_model_folder(folder)
