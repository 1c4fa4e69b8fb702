"""`AlexNet.from_pretrained`: a trained network with its classes and its preprocessing, from a folder or from the hub.

The folder is the run's model/, and `save_pretrained` writes such a folder.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Self

import torch
from huggingface_hub import ModelCard as HubCard
from huggingface_hub import PyTorchModelHubMixin, snapshot_download
from huggingface_hub.errors import HFValidationError
from torch import Tensor

from alexnet_dist import models
from alexnet_dist.base.durable import MANIFEST, read_object, write_into_folder
from alexnet_dist.base.errors import AlexNetDistError, CheckpointError, MachineError, UsageError
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
from alexnet_dist.inference.model_page import (
    README,
    change_metadata,
    drop_page,
    format_page,
    has_results,
    is_own_page,
    read_page,
)
from alexnet_dist.inference.weights import load_weights, pack_tensors

# What `from_pretrained` hands on to `snapshot_download`, and `save_pretrained` to `push_to_hub`.
DOWNLOADING = (
    *("revision", "cache_dir", "token", "force_download", "local_files_only", "local_dir"),
    *("endpoint", "etag_timeout", "headers", "user_agent", "max_workers", "tqdm_class"),
)
SAVING = (
    *("repo_id", "push_to_hub", "config", "model_card_kwargs", "commit_message", "private", "token", "branch"),
    *("create_pr", "allow_patterns", "ignore_patterns", "delete_patterns", "without_results"),
)
PUSHING = tuple(name for name in SAVING if name not in ("repo_id", "push_to_hub", "without_results"))
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
        self._page: str | None = None  # README.md beside the weights

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
        model._page = read_page(folder)
        return model.eval()

    def save_pretrained(self, save_directory: str | Path, **options: Any) -> str | None:
        """Save a folder that evaluate, predict and export accept; see huggingface_hub.

        Args:
            save_directory: where; a folder that was saved before is replaced. A README.md of its user's stays.
            options: repo_id, push_to_hub and the like. `model_card_kwargs` are metadata of the hub for README.md:
                license, language, datasets, widget, ...

        Raises:
            TypeError: another keyword.
            UsageError: the folder is the model/ of a run, or holds files of something else under the names of ours.
            MachineError: it cannot be written.
        """
        _check_keywords("save_pretrained", options, SAVING)
        _check_target(Path(save_directory))  # before huggingface_hub removes config.json
        drop_page(Path(save_directory))
        written: str | None = super().save_pretrained(save_directory, **options)
        return written

    def _save_pretrained(self, save_directory: Path) -> None:
        """The hub's way to say how its `save_pretrained` writes."""
        card = dataclasses.replace(self.card, source=keep_public(self.card.source))  # older versions told more
        write_into_folder(save_directory, pack_model(self.state_dict(), card), "save_directory")

    def generate_model_card(self, **metadata: Any) -> HubCard:
        """README.md of the folder that is saved: the page that the weights came with, where they still are the same.

        The page of other weights has no results.

        Args:
            metadata: of the hub: license, language, datasets, widget, ...

        Raises:
            UsageError: the hub does not know metadata in this form.
        """
        digest = hashlib.sha256(pack_tensors(self.state_dict())).hexdigest()
        page = self._page
        if page is None or (is_own_page(page) and digest not in page):
            page = format_page(self.card, digest)
        try:
            return HubCard(change_metadata(page, metadata))
        except (ValueError, TypeError) as error:
            why = str(error).strip().partition("\n")[0]
            remedy = "see https://huggingface.co/docs/hub/model-cards"
            raise UsageError(
                "no metadata of a model card", where="model_card_kwargs", why=why, remedy=remedy
            ) from error

    def push_to_hub(self, repo_id: str, *, without_results: bool = False, **options: Any) -> str:
        """Push the folder of `save_pretrained` to the hub; see huggingface_hub.

        Args:
            repo_id: as "somebody/flowers".
            without_results: push a model whose README.md has no results, too.
            options: private, token, commit_message and the like; `model_card_kwargs` as in `save_pretrained`.

        Returns:
            The address of the commit.

        Raises:
            TypeError: another keyword.
            UsageError: README.md has no results; or no name of a model.
            MachineError: the hub does not take it.
        """
        _check_keywords("push_to_hub", options, PUSHING)
        metadata = options.get("model_card_kwargs") or {}
        if not without_results and not has_results(str(self.generate_model_card(**metadata))):
            why = "nothing says how good these weights are"
            remedy = "push the model/ of a finished run, or give without_results=True"
            raise UsageError("the model card has no results", where=repo_id, why=why, remedy=remedy)
        try:
            return str(super().push_to_hub(repo_id, **options))
        except AlexNetDistError:
            raise
        except HFValidationError as error:
            raise UsageError("no name of a model", where=repo_id, remedy="give one as somebody/flowers") from error
        except Exception as error:  # the transport's errors are of kinds of its own
            why = str(error).strip().partition("\n")[0] or type(error).__name__
            remedy = "see whether there is a network, and log in with `hf auth login` or give a token"
            raise MachineError("the hub does not take the model", where=repo_id, why=why, remedy=remedy) from error


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
        folder = Path(snapshot_download(str(name), allow_patterns=[WEIGHTS, CONFIG, MANIFEST, README], **download))
    except HFValidationError:
        raise CheckpointError("no model", where=str(name), why="no such folder", remedy=remedy) from None
    except Exception as error:  # the transport's errors are of kinds of its own
        why = f"no such folder, and the hub does not give it: {str(error).strip().partition(chr(10))[0]}"
        raise MachineError("no model", where=str(name), why=why, remedy=remedy) from error
    return find_model_folder(folder)
